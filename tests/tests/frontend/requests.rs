//! Single requests and what the specification says of them.

use dm_tests::blk::{Data, Request, Segment, kind};
use dm_tests::daemon::Served;
use dm_tests::files;
use dm_tests::vmm::Setup;

use crate::{IOERR, Piece, SECTOR, UNSUPP, pattern};

fn range(sector: u64, sectors: u32, flags: u32) -> Segment {
    Segment { sector, sectors, flags }
}

#[test]
fn unknown_requests_are_unsupported() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    let mut vmm = served.vmm(&Setup::default());
    for kind in [2, 3, 7, kind::GET_LIFETIME, kind::SECURE_ERASE, 100, u32::MAX] {
        for data in [Data::None, Data::FromDevice(512), Data::ToDevice(&[1; 512])] {
            let sector = 0;
            let done = vmm.run(0, &Request { kind, sector, data });
            assert_eq!(done.status, UNSUPP.0, "type {kind} with {data:?}");
        }
    }
    assert!(piece.now() == piece.bytes);
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn an_error_segment_fails_alone() {
    let piece = Piece::new(256);
    let name = piece.name();
    let table = format!("0 64 linear {name} 0\n64 8 error\n72 8 zero\n80 64 linear {name} 64\n");
    let mut served = Served::table(&table, &[]);
    let mut vmm = served.vmm(&Setup::default());
    for sector in 0..144 {
        let read = vmm.read(0, sector, SECTOR);
        let wrote = vmm.write(0, sector, &[sector as u8; SECTOR]);
        if (64..72).contains(&sector) {
            assert_eq!((read, wrote), (Err(IOERR), Err(IOERR)), "sector {sector}");
        } else {
            assert!(read.is_ok() && wrote.is_ok(), "sector {sector}");
        }
    }
    assert_eq!(vmm.read(0, 72, 8 * SECTOR), Ok(vec![0; 8 * SECTOR]));
    vmm.flush(0).expect("an error segment does not fail a flush");
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn discard_gives_disk_space_back() {
    let piece = Piece::new(16384);
    let mut served = Served::table(&piece.table(), &[]);
    let mut vmm = served.vmm(&Setup::default());
    let before = files::allocated(&piece.path);
    vmm.ranges(0, kind::DISCARD, &[range(0, 8192, 0)]).expect("discard");
    vmm.flush(0).expect("flush");
    let after = files::allocated(&piece.path);
    assert!(before - after >= 4 << 20, "{before} became {after}");
    assert!(vmm.read(0, 8192, 8 * SECTOR).as_deref() == Ok(&piece.bytes[8192 * SECTOR..][..8 * SECTOR]));
    vmm.ranges(0, kind::WRITE_ZEROES, &[range(8192, 8192, 1)]).expect("write zeroes, unmap");
    let zeros = vec![0; 64 << 10];
    for sector in (8192..16384).step_by(128) {
        assert!(vmm.read(0, sector, zeros.len()).as_ref() == Ok(&zeros));
    }
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn zeroes_are_written_with_unmap_and_without() {
    let piece = Piece::new(512);
    let mut served = Served::table(&piece.table(), &[]);
    let mut vmm = served.vmm(&Setup::default());
    let mut expect = piece.bytes.clone();
    for flags in [0, 1] {
        let from = 3 + 200 * u64::from(flags);
        let ranges = [range(from, 5, flags), range(from + 20, 64, flags), range(from + 100, 1, flags)];
        let ranges = &ranges[..ranges.len().min(vmm.config.max_write_zeroes_seg as usize)];
        vmm.ranges(0, kind::WRITE_ZEROES, ranges).expect("write zeroes");
        for r in ranges {
            expect[r.sector as usize * SECTOR..][..r.sectors as usize * SECTOR].fill(0);
        }
    }
    assert!(vmm.read_all(0).as_ref() == Ok(&expect));
    vmm.flush(0).expect("flush");
    assert!(piece.now() == expect);
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn wrong_ranges_are_refused_whole() {
    let piece = Piece::new(512);
    let mut served = Served::table(&piece.table(), &[]);
    let mut vmm = served.vmm(&Setup::default());
    let good = range(0, 8, 0);
    for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
        let past = [
            range(512, 1, 0),
            range(511, 2, 0),
            range(u64::MAX, 1, 0),
            range(u64::MAX, u32::MAX, 0),
            range(0, u32::MAX, 0),
        ];
        for bad in past {
            assert_eq!(vmm.ranges(0, kind, &[bad]), Err(IOERR), "{bad:?}");
            assert!(vmm.ranges(0, kind, &[good, bad]).is_err(), "{bad:?}");
        }
        for flags in [2, 0x8000_0000] {
            assert_eq!(vmm.ranges(0, kind, &[range(0, 8, flags)]), Err(UNSUPP));
        }
        for len in [1, 8, 15, 17, 31] {
            let data = Data::ToDevice(&[0; 32][..len]);
            let sector = 0;
            let done = vmm.run(0, &Request { kind, sector, data });
            assert!(done.status == IOERR.0 || done.status == UNSUPP.0, "{len} bytes: {done:?}");
        }
        let many = vec![good; 4096 / 16];
        if many.len() > vmm.config.max_discard_seg as usize {
            assert_eq!(vmm.ranges(0, kind, &many), Err(IOERR));
        }
    }
    assert_eq!(vmm.ranges(0, kind::DISCARD, &[range(0, 8, 1)]), Err(UNSUPP), "unmap means nothing in a discard");
    assert!(piece.now() == piece.bytes, "a refused request changed bytes");
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn lengths_that_are_no_sectors_are_refused() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    let mut vmm = served.vmm(&Setup::default());
    for len in [1, 511, 513, 1000] {
        let bytes = vec![9; len];
        assert_eq!(vmm.write(0, 0, &bytes), Err(IOERR), "write of {len}");
        assert_eq!(vmm.read(0, 0, len), Err(IOERR), "read of {len}");
    }
    assert!(piece.now() == piece.bytes);
    assert!(vmm.read(0, 1, SECTOR).as_deref() == Ok(&pattern(2, 1)[SECTOR..]));
    drop(vmm);
    served.daemon.stop();
}
