//! Logs of writes, each on a device of its own.

use super::undone::Bench;
use super::*;
use crate::worker::ops::Action;

const FIRST: &str = "0 2048 log-writes {a} {c}";
const SECOND: &str = "0 2048 log-writes {b} {c}";

fn log(bench: &Bench) -> Vec<u8> {
    std::fs::read(bench.path("c")).unwrap()
}

fn status(mapper: &Mapper, name: &str) -> String {
    mapper.status(&Query { which: named(name), inactive: false }).unwrap().remove(0).params
}

fn remove(mapper: &Mapper, name: &str) {
    mapper.remove(&Remove { which: named(name), ..Remove::default() }, &Patient).unwrap();
}

#[test]
fn two_devices_do_not_log_to_the_same_one() {
    let bench = Bench::new();
    let mapper = &bench.mapper;
    made(mapper, "disk", &bench.table(FIRST));
    bench.writes(16, 1);
    bench.does(Action::Flush, 0, 0).unwrap().unwrap();
    let before = log(&bench);
    create(mapper, "other").unwrap();
    load(mapper, "other", &bench.table(SECOND)).unwrap();
    let error = resume(mapper, "other").unwrap_err();
    assert!(error.errno == libc::EINVAL && error.kernel[0].contains("a device of its own"), "{error}");
    remove(mapper, "other");
    assert!(log(&bench) == before, "the log has changed");
    bench.writes(16, 2);
    assert!(!status(mapper, "disk").contains("disabled"));
    // Another of its own tables may have it, and goes back.
    bench.may_keep(false);
    load(mapper, "disk", &bench.table(FIRST)).unwrap();
    resume(mapper, "disk").unwrap_err();
    bench.may_keep(true);
    resume(mapper, "disk").unwrap();
    bench.does(Action::Flush, 0, 0).unwrap().unwrap();
    assert!(!status(mapper, "disk").contains("disabled"));
    load(mapper, "disk", &bench.table(FIRST)).unwrap();
    resume(mapper, "disk").unwrap();
    bench.writes(16, 3);
    assert!(!status(mapper, "disk").contains("disabled"));
    remove(mapper, "disk");
    made(mapper, "other", &bench.table(SECOND));
}

#[test]
fn a_log_that_was_taken_over_meanwhile_is_left_alone() {
    for goes_on in [false, true] {
        let bench = Bench::new();
        let mapper = &bench.mapper;
        made(mapper, "first", &bench.table(SECOND));
        suspend(mapper, "first").unwrap();
        let message = schema::Message { which: named("first"), sector: 0, args: vec!["mark".into(), "late".into()] };
        mapper.message(&message).unwrap();
        made(mapper, "disk", &bench.table(FIRST));
        bench.writes(16, 1);
        bench.does(Action::Flush, 0, 0).unwrap().unwrap();
        let before = log(&bench);
        if goes_on {
            resume(mapper, "first").unwrap();
            assert!(status(mapper, "first").contains("logging_disabled"));
        }
        remove(mapper, "first");
        assert!(log(&bench) == before, "the log has changed");
        bench.writes(16, 2);
        assert!(!status(mapper, "disk").contains("disabled"));
    }
}
