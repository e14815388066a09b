//! Who has to stand all that.

use super::{Case, PLAIN, checks, merging};

macro_rules! cases {
    ($( $(#[$doc:meta])* $name:ident = $case:expr; )*) => { $(
        $(#[$doc])*
        mod $name {
            use super::*;

            static CASE: Case = $case;

            #[test]
            fn any_cut_in_any_order_gives_the_same_bytes() {
                checks::any_cut_in_any_order_gives_the_same_bytes(&CASE);
            }

            #[test]
            fn an_error_anywhere_reaches_the_guest_and_does_no_other_harm() {
                checks::an_error_anywhere_reaches_the_guest_and_does_no_other_harm(&CASE);
            }

            #[test]
            fn what_was_acknowledged_survives_a_crash() {
                checks::what_was_acknowledged_survives_a_crash(&CASE);
            }

            #[test]
            fn a_suspend_in_the_middle_ends_and_everything_goes_on() {
                checks::a_suspend_in_the_middle_ends_and_everything_goes_on(&CASE);
            }

            #[test]
            fn a_suspend_waits_for_devices_alone() {
                checks::a_suspend_waits_for_devices_alone(&CASE);
            }

            #[test]
            fn its_life_may_take_any_turn() {
                checks::its_life_may_take_any_turn(&CASE);
            }

            #[test]
            fn its_text_is_read_as_it_was_printed() {
                checks::its_text_is_read_as_it_was_printed(&CASE);
            }
        }
    )* };
}

cases! {
    delay_none = Case { parts: &[300], tables: &["0 256 delay c0 8 0"], place: |at| Some((0, at + 8)), ..PLAIN };
    delay_all = Case { parts: &[256], tables: &["0 200 delay c0 56 3"], place: |at| Some((0, at + 56)), ..PLAIN };
    // One place by three classes, each with a time of its own: flushes must not pass writes.
    delay_classes = Case { parts: &[256], tables: &["0 256 delay c0 0 1 c0 0 7 c0 0 2"], ..PLAIN };
    delay_above_stripes = Case {
        parts: &[200, 200],
        tables: &["0 320 striped 2 8 c0 0 c1 40", "0 100 delay /dev/mapper/t0 100 2\n100 100 linear /dev/mapper/t0 0"],
        place: |at| {
            let at = if at < 100 { at + 100 } else { at - 100 };
            let (row, leg, within) = (at / 16, at / 8 % 2, at % 8);
            Some((leg as usize, row * 8 + within + 40 * leg))
        },
        ..PLAIN
    };
    // For hours.
    delay_long = Case { parts: &[256], tables: &["0 256 delay c0 0 7200000 c0 0 3600000"], ..PLAIN };
    // What a resync reads and writes is held back for hours too, and no queue has a part in that.
    delay_below_a_resync = Case {
        parts: &[160, 160],
        tables: &[
            "0 128 delay c0 8 7200000",
            "0 128 delay c1 0 0 c1 0 3600000",
            "0 128 mirror core 1 32 2 /dev/mapper/t0 0 /dev/mapper/t1 0",
        ],
        place: |at| Some((0, at + 8)),
        masks: true,
        rewrites: true,
        whole: &[1],
        ..PLAIN
    };
    // Nothing but the upper one reaches the lower one.
    delay_on_dust = Case {
        parts: &[208],
        tables: &["0 200 dust c0 8 1024", "0 200 delay /dev/mapper/t0 0 1"],
        messages: &[&["addbadblock", "2"], &["enable"]],
        place: |at| Some((0, at + 8)),
        ..PLAIN
    };
    flakey_up = Case { parts: &[256], tables: &["0 250 flakey c0 6 1000000 1"], place: |at| Some((0, at + 6)), ..PLAIN };
    dust_bypassed = Case {
        parts: &[256],
        tables: &["0 240 dust c0 16 4096"],
        messages: &[&["addbadblock", "3"]],
        place: |at| Some((0, at + 16)),
        ..PLAIN
    };
    dust_enabled = Case {
        parts: &[256],
        tables: &["0 241 dust c0 9 2048"],
        messages: &[&["addbadblock", "0"], &["addbadblock", "63"], &["removebadblock", "63"], &["enable"]],
        place: |at| Some((0, at + 9)),
        ..PLAIN
    };
    unstriped = Case {
        parts: &[300],
        tables: &["0 96 unstriped 3 8 1 c0 5"],
        place: |at| Some((0, at / 8 * 24 + 8 + at % 8 + 5)),
        ..PLAIN
    };
    unstriped_of_striped = Case {
        parts: &[100, 100, 100],
        tables: &["0 288 striped 3 4 c0 4 c1 0 c2 4", "0 96 unstriped 3 4 2 /dev/mapper/t0 0"],
        place: |at| Some((2, at + 4)),
        ..PLAIN
    };
    switch = Case {
        parts: &[200, 200, 210],
        tables: &["0 200 switch 3 7 0 c0 0 c1 0 c2 10"],
        messages: &[&["set_region_mappings", "0:1", ":0", ":2", "R2,8"]],
        // Regions 0 to 10 by the message: 1, 0, 2, then the last two again and again; the others as they were.
        place: |at| {
            let path = match at / 7 {
                0 => 1,
                region @ 1..11 => if region % 2 == 1 { 0 } else { 2 },
                region => region as usize % 3,
            };
            Some((path, if path == 2 { at + 10 } else { at }))
        },
        ..PLAIN
    };
    ebs_of_a_file = Case {
        parts: &[272],
        tables: &["0 250 ebs c0 16 1 8"],
        place: |at| Some((0, at + 16)),
        ..PLAIN
    };
    ebs_of_large_blocks = Case {
        parts: &[272],
        tables: &["0 256 ebs c0 16 2"],
        place: |at| Some((0, at + 16)),
        block: 8,
        ..PLAIN
    };
    snapshot_kept = Case {
        parts: &[260, 600],
        tables: &["0 256 snapshot c0 c1 P 8"],
        whole: &[1],
        breaks: true,
        rewrites: true,
        ..PLAIN
    };
    // Areas of 32 chunks: they are filled, and there are several.
    snapshot_of_sectors = Case {
        parts: &[256, 400],
        tables: &["0 256 snapshot c0 c1 PO 1"],
        whole: &[1],
        breaks: true,
        rewrites: true,
        ..PLAIN
    };
    snapshot_in_memory = Case {
        parts: &[256, 256],
        tables: &["0 256 snapshot c0 c1 N 4"],
        whole: &[1],
        breaks: true,
        rewrites: true,
        lasts: false,
        ..PLAIN
    };
    snapshot_with_discards = Case {
        parts: &[256, 600],
        tables: &["0 250 snapshot c0 c1 P 4 2 discard_zeroes_cow discard_passdown_origin"],
        // The last chunk is copied up to the end of the origin, as a merge has to put it back.
        whole: &[0, 1],
        breaks: true,
        rewrites: true,
        ..PLAIN
    };
    a_merge = Case {
        parts: &[256, 600],
        tables: &["0 256 snapshot-merge c0 c1 P 8"],
        place: merging::place,
        prepare: merging::prepare,
        whole: &[0, 1],
        // An error of the merge is none of a request's.
        masks: true,
        breaks: true,
        rewrites: true,
        ..PLAIN
    };
    // What is merged has to be copied to another snapshot first.
    a_merge_beside_a_snapshot = Case {
        parts: &[256, 600, 700],
        tables: &["0 256 snapshot c0 c2 P 4", "0 256 snapshot-merge c0 c1 P 8"],
        place: merging::place,
        prepare: merging::prepare,
        whole: &[0, 1, 2],
        masks: true,
        breaks: true,
        rewrites: true,
        ..PLAIN
    };
    // What is written to the origin has to be copied to two snapshots first.
    an_origin = Case {
        parts: &[256, 700, 300],
        tables: &["0 256 snapshot c0 c1 P 8", "0 256 snapshot c0 c2 N 2", "0 256 snapshot-origin c0"],
        whole: &[1, 2],
        masks: true,
        rewrites: true,
        ..PLAIN
    };
    a_snapshot_of_targets = Case {
        parts: &[300, 600],
        tables: &["0 256 delay c0 8 1", "0 256 snapshot /dev/mapper/t0 c1 P 8", "0 200 linear /dev/mapper/t1 56"],
        whole: &[1],
        place: |at| Some((0, 8 + 56 + at)),
        breaks: true,
        rewrites: true,
        ..PLAIN
    };
    log_writes = Case {
        parts: &[256, 1 << 15],
        tables: &["0 256 log-writes c0 c1"],
        messages: &[&["mark", "one"]],
        whole: &[1],
        masks: true,
        rewrites: true,
        ..PLAIN
    };
    // Full after some requests: the disk goes on.
    log_writes_full = Case {
        parts: &[256, 100],
        tables: &["0 200 log-writes c0 c1"],
        whole: &[1],
        masks: true,
        rewrites: true,
        ..PLAIN
    };
    // From the first leg to the other two, while there are requests.
    mirror_core = Case {
        parts: &[300, 280, 256],
        tables: &["0 256 mirror core 1 32 3 c0 8 c1 20 c2 0"],
        place: |at| Some((0, at + 8)),
        masks: true,
        rewrites: true,
        whole: &[1, 2],
        ..PLAIN
    };
    mirror_in_sync = Case {
        parts: &[256, 256],
        tables: &["0 250 mirror core 2 64 nosync 2 c0 6 c1 6 1 handle_errors"],
        prepare: |parts| parts[1] = parts[0].clone(),
        place: |at| Some((0, at + 6)),
        masks: true,
        rewrites: true,
        // Without a log nobody knows which writes a crash has left on one leg alone.
        lasts: false,
        whole: &[1],
        ..PLAIN
    };
    mirror_log = Case {
        parts: &[256, 256, 8],
        tables: &["0 256 mirror disk 2 c2 16 2 c0 0 c1 0 2 handle_errors keep_log"],
        prepare: |parts| parts[2].fill(0),
        masks: true,
        rewrites: true,
        whole: &[1, 2],
        ..PLAIN
    };
    mirror_small_regions = Case {
        parts: &[256, 256, 256, 8],
        tables: &["0 241 mirror disk 3 c3 2 sync 3 c0 15 c1 0 c2 7"],
        place: |at| Some((0, at + 15)),
        masks: true,
        rewrites: true,
        whole: &[1, 2, 3],
        ..PLAIN
    };
    // Below others, and above others.
    mirror_stacked = Case {
        parts: &[300, 300, 16],
        tables: &[
            "0 200 delay c0 8 1",
            "0 128 mirror disk 2 c2 8 2 /dev/mapper/t0 40 c1 3",
            "0 100 linear /dev/mapper/t1 20\n100 16 dust /dev/mapper/t1 0 512",
        ],
        prepare: |parts| parts[2].fill(0),
        place: |at| Some((0, 8 + 40 + if at < 100 { at + 20 } else { at - 100 })),
        masks: true,
        rewrites: true,
        whole: &[1, 2],
        ..PLAIN
    };
    a_stack = Case {
        parts: &[300, 300],
        tables: &[
            "0 128 dust c0 8 1024\n128 100 delay c1 3 2",
            "0 228 flakey /dev/mapper/t0 0 1000000 1",
            "0 100 delay /dev/mapper/t1 100 1 /dev/mapper/t1 100 4\n100 64 linear /dev/mapper/t0 0\n164 32 striped 2 4 /dev/mapper/t1 64 c0 200",
        ],
        messages: &[&["addbadblock", "2"], &["enable"]],
        place: |at| {
            let below = |at| if at < 128 { (0, at + 8) } else { (1, at - 128 + 3) };
            Some(match at {
                0..100 => below(at + 100),
                100..164 => below(at - 100),
                _ => {
                    let (row, leg, within) = ((at - 164) / 8, (at - 164) / 4 % 2, at % 4);
                    let at = row * 4 + within;
                    if leg == 0 { below(64 + at) } else { (0, 200 + at) }
                }
            })
        },
        ..PLAIN
    };
}
