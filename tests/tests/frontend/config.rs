//! Configuration space, feature bits, serial number, read-only disks.

use dm_tests::blk::{Config, Segment, feature, kind};
use dm_tests::daemon::{Daemon, Served, flag};
use dm_tests::vmm::{Order, Setup, Vmm};
use rustix::process::Signal;

use crate::{IOERR, Piece, SECTOR, UNSUPP, pattern};

#[test]
fn the_configuration_tells_what_the_table_is() {
    let piece = Piece::new(4096);
    let name = piece.name();
    let table = format!("0 1000 linear {name} 0\n1000 1024 striped 2 16 {name} 1000 {name} 2000\n");
    let mut served = Served::table(&table, &[]);
    let vmm = served.vmm(&Setup::default());
    let config = vmm.config;
    assert_eq!(config.capacity, 2024);
    assert_eq!(config.blk_size, 512);
    assert_eq!(config.num_queues, 16);
    assert_eq!(config.writeback, 1);
    assert!((1..=254).contains(&config.seg_max), "{config:?}");
    assert!(config.size_max >= 65536, "{config:?}");
    assert_eq!(u64::from(config.opt_io_size) * 512, 2 * 16 * 512, "a full row of stripes");
    for (sectors, segments) in [
        (config.max_discard_sectors, config.max_discard_seg),
        (config.max_write_zeroes_sectors, config.max_write_zeroes_seg),
    ] {
        assert!(sectors >= 1024 && segments >= 1, "{config:?}");
    }
    assert!(config.discard_sector_alignment >= 1);
    let expected = feature::VERSION_1
        | feature::INDIRECT
        | feature::EVENT_IDX
        | feature::SEG_MAX
        | feature::SIZE_MAX
        | feature::BLK_SIZE
        | feature::TOPOLOGY
        | feature::FLUSH
        | feature::CONFIG_WCE
        | feature::MQ
        | feature::DISCARD
        | feature::WRITE_ZEROES;
    assert_eq!(vmm.offered & expected, expected);
    assert_eq!(vmm.offered & (feature::RO | feature::RING_PACKED), 0);
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn any_part_of_the_configuration_may_be_asked_for() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    let vmm = served.vmm(&Setup::default());
    let whole = vmm.get_config(0, 60).expect("60 bytes, as virtio-driver");
    assert_eq!(vmm.get_config(0, 57).expect("57, as QEMU"), whole[..57]);
    assert_eq!(vmm.get_config(1, 8).expect("8, the capacity"), whole[..8]);
    assert_eq!(Config::decode(&whole).capacity, 256);
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn the_serial_number_is_the_one_given() {
    let piece = Piece::new(256);
    for serial in ["S-1", "exactly-twenty-bytes"] {
        let mut served = Served::table(&piece.table(), &[&format!("--serial={serial}")]);
        let mut vmm = served.vmm(&Setup::default());
        let mut expect = serial.as_bytes().to_vec();
        expect.resize(20, 0);
        assert_eq!(vmm.get_id(0), Ok(expect));
        drop(vmm);
        served.daemon.stop();
    }
}

#[test]
fn a_read_only_disk_refuses_to_be_written() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &["--read-only"]);
    let mut vmm = served.vmm(&Setup::default());
    assert_eq!(vmm.offered & feature::RO, feature::RO);
    assert!(vmm.read_all(0).as_ref() == Ok(&piece.bytes));
    assert_eq!(vmm.write(0, 0, &pattern(4, 9)), Err(IOERR));
    let range = Segment { sector: 0, sectors: 8, flags: 0 };
    for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
        let refused = vmm.ranges(0, kind, &[range]).expect_err("read-only");
        assert!(refused == IOERR || refused == UNSUPP, "{refused:?}");
    }
    vmm.flush(0).expect("a flush writes nothing");
    assert!(piece.now() == piece.bytes);
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn several_may_read_what_nobody_writes() {
    let piece = Piece::new(256);
    let mut first = Served::table(&piece.table(), &["--read-only"]);
    let mut second = Served::table(&piece.table(), &["--read-only"]);
    for served in [&mut first, &mut second] {
        let mut vmm = served.vmm(&Setup::default());
        assert!(vmm.read_all(0).as_ref() == Ok(&piece.bytes));
    }
    first.daemon.stop();
    second.daemon.stop();
}

#[test]
fn the_write_cache_can_be_turned_off_and_on() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    let mut vmm = served.vmm(&Setup::default());
    for writeback in [0, 1, 0] {
        vmm.set_config(Config::WRITEBACK_AT, &[writeback]).expect("SET_CONFIG");
        let now = Config::decode(&vmm.get_config(0, 60).expect("GET_CONFIG"));
        assert_eq!(now.writeback, writeback);
        let bytes = pattern(8, 50 + writeback);
        vmm.write(0, 8, &bytes).expect("write");
        assert!(vmm.read(0, 8, 8 * SECTOR) == Ok(bytes));
    }
    drop(vmm);
    // Whatever the next guest finds, it can change.
    let mut vmm = served.vmm(&Setup::default());
    vmm.set_config(Config::WRITEBACK_AT, &[1]).expect("SET_CONFIG");
    let now = Config::decode(&vmm.get_config(0, 60).expect("GET_CONFIG"));
    assert_eq!(now.writeback, 1);
    vmm.write(0, 0, &pattern(8, 60)).expect("write");
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn a_driver_that_chose_write_through_has_it_when_the_back_end_was_killed() {
    let piece = Piece::new(256);
    for order in [Order::Qemu, Order::CloudHypervisor] {
        let Served { daemon, socket, .. } = &mut Served::table(&piece.table(), &[]);
        let table = socket.with_extension("table");
        let mut vmm = daemon.vmm(socket, &Setup { order, ..Setup::default() });
        let writeback = |vmm: &Vmm| Config::decode(&vmm.get_config(0, 60).expect("GET_CONFIG")).writeback;
        for choice in [0, 1, 0] {
            vmm.set_config(Config::WRITEBACK_AT, &[choice]).expect("SET_CONFIG");
            assert_eq!(writeback(&vmm), choice);
            daemon.signal(Signal::KILL);
            daemon.wait(std::time::Duration::from_secs(60)).expect("it is dead");
            *daemon = Daemon::start([flag("--socket-path", socket), flag("--table", &table)]);
            let stream = daemon.connect(socket);
            vmm.reconnect(stream).expect("come back");
            assert_eq!(writeback(&vmm), choice, "{order:?}");
            vmm.write(0, 0, &pattern(8, 60)).expect("write");
        }
    }
}

#[test]
fn a_driver_may_choose_before_the_features_are_told() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    // QEMU says SET_FEATURES when the driver is ready, and passes SET_CONFIG on before that.
    let mut vmm = Vmm::handshake(served.daemon.connect(&served.socket), &Setup::default()).expect("a handshake");
    vmm.set_config(Config::WRITEBACK_AT, &[0]).expect("SET_CONFIG");
    vmm.start().expect("the rings start");
    let now = Config::decode(&vmm.get_config(0, 60).expect("GET_CONFIG"));
    assert_eq!(now.writeback, 0);
    // A region with an older choice in it does not change that.
    let region = vmm.get_inflight().expect("GET_INFLIGHT_FD");
    vmm.set_inflight(&region).expect("SET_INFLIGHT_FD");
    vmm.set_config(Config::WRITEBACK_AT, &[1]).expect("SET_CONFIG");
    drop(vmm);
    let vmm = Vmm::handshake(served.daemon.connect(&served.socket), &Setup::default()).expect("a handshake");
    vmm.set_config(Config::WRITEBACK_AT, &[0]).expect("SET_CONFIG");
    vmm.set_inflight(&region).expect("SET_INFLIGHT_FD");
    let now = Config::decode(&vmm.get_config(0, 60).expect("GET_CONFIG"));
    assert_eq!(now.writeback, 0);
    drop(vmm);
    served.daemon.stop();
}
