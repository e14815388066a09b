//! Logs of writes, each on a device of its own.

use super::undone::Bench;
use super::*;
use crate::log_writes::END_MARK;
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

/// Another device does not get the log that `whose` has.
fn is_refused(bench: &Bench, whose: &str) {
    let mapper = &bench.mapper;
    load(mapper, "other", &bench.table(SECOND)).unwrap();
    let error = resume(mapper, "other").unwrap_err();
    assert!(error.errno == libc::EINVAL && error.kernel[0].contains("a device of its own"), "{error}");
    assert!(error.kernel[0].contains(&format!("`{whose}`")), "not {whose}: {error}");
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
    is_refused(&bench, "disk");
    remove(mapper, "other");
    assert!(log(&bench) == before, "the log has changed");
    bench.writes(16, 2);
    assert!(!status(mapper, "disk").contains("disabled"));
    mapper.rename(&Rename { which: named("disk"), name: Some("new".into()), uuid: None }, &Patient).unwrap();
    create(mapper, "other").unwrap();
    is_refused(&bench, "new");
    remove(mapper, "new");
    load(mapper, "other", &bench.table(SECOND)).unwrap();
    resume(mapper, "other").unwrap();
}

#[test]
fn nor_do_two_lines_of_one() {
    let bench = Bench::new();
    let mapper = &bench.mapper;
    made(mapper, "disk", &bench.table(FIRST));
    load(mapper, "disk", &bench.table("0 1024 log-writes {a} {c}\n1024 1024 log-writes {b} {c}")).unwrap();
    let error = resume(mapper, "disk").unwrap_err();
    assert!(error.errno == libc::EINVAL && error.kernel[0].contains("another line"), "{error}");
    resume(mapper, "disk").unwrap();
    bench.writes(16, 1);
    assert!(!status(mapper, "disk").contains("disabled"));
}

#[test]
fn another_table_of_the_device_takes_its_log_over() {
    let bench = Bench::new();
    let mapper = &bench.mapper;
    made(mapper, "disk", &bench.table(FIRST));
    create(mapper, "other").unwrap();
    // It goes back where the new table cannot be kept.
    bench.may_keep(false);
    load(mapper, "disk", &bench.table(FIRST)).unwrap();
    resume(mapper, "disk").unwrap_err();
    bench.may_keep(true);
    is_refused(&bench, "disk");
    resume(mapper, "disk").unwrap();
    bench.writes(16, 1);
    bench.does(Action::Flush, 0, 0).unwrap().unwrap();
    assert_eq!(status(mapper, "disk"), "2 10");
    is_refused(&bench, "disk");
    load(mapper, "disk", &bench.table(FIRST)).unwrap();
    resume(mapper, "disk").unwrap();
    bench.writes(16, 2);
    is_refused(&bench, "disk");
    assert!(!status(mapper, "disk").contains("disabled"));
    // One that has its log elsewhere leaves this one.
    load(mapper, "disk", &bench.table("0 2048 log-writes {a} {d}")).unwrap();
    resume(mapper, "disk").unwrap();
    load(mapper, "other", &bench.table(SECOND)).unwrap();
    resume(mapper, "other").unwrap();
}

#[test]
fn a_device_keeps_its_log_while_it_is_suspended() {
    let bench = Bench::new();
    let mapper = &bench.mapper;
    made(mapper, "disk", &bench.table(FIRST));
    create(mapper, "other").unwrap();
    bench.writes(16, 1);
    suspend(mapper, "disk").unwrap();
    let message = schema::Message { which: named("disk"), sector: 0, args: vec!["mark".into(), "late".into()] };
    mapper.message(&message).unwrap();
    is_refused(&bench, "disk");
    resume(mapper, "disk").unwrap();
    bench.does(Action::Flush, 0, 0).unwrap().unwrap();
    assert_eq!(status(mapper, "disk"), "3 11");
    suspend(mapper, "disk").unwrap();
    remove(mapper, "disk");
    load(mapper, "other", &bench.table(SECOND)).unwrap();
    resume(mapper, "other").unwrap();
}

#[test]
fn a_device_keeps_its_log_while_one_below_it_is_suspended() {
    let bench = Bench::new();
    let mapper = &bench.mapper;
    made(mapper, "low", &bench.table("0 2048 linear {a} 0"));
    made(mapper, "disk", &bench.table("0 2048 log-writes /dev/mapper/low {c}"));
    create(mapper, "other").unwrap();
    suspend(mapper, "low").unwrap();
    is_refused(&bench, "disk");
    resume(mapper, "low").unwrap();
    bench.writes(16, 1);
    assert!(!status(mapper, "disk").contains("disabled"));
}

#[test]
fn a_log_is_left_when_its_last_words_are_written() {
    // Keeping what is live would have one verb wait for the other.
    let (bench, mapper) = (Bench::new(), mapper());
    let mapper = &mapper;
    // So slow that others see it being written.
    made(mapper, "slow", &bench.table("0 2048 delay {c} 0 50"));
    made(mapper, "disk", &bench.table("0 2048 log-writes {b} /dev/mapper/slow"));
    create(mapper, "other").unwrap();
    let table = bench.table("0 2048 log-writes {a} /dev/mapper/slow");
    std::thread::scope(|scope| {
        let removed = scope.spawn(|| remove(mapper, "disk"));
        loop {
            load(mapper, "other", &table).unwrap();
            match resume(mapper, "other") {
                Ok(_) => break,
                Err(error) => assert!(error.kernel[0].contains("a device of its own"), "{error}"),
            }
        }
        // The new one writes nothing before it has an entry.
        let seen = log(&bench);
        removed.join().unwrap();
        assert!(seen.windows(END_MARK.len()).any(|window| window == END_MARK.as_bytes()), "no last words");
        assert!(log(&bench) == seen, "it was still written");
    });
}

#[test]
fn of_two_given_devices_with_one_log_the_second_is_refused_by_name() {
    let bench = Bench::new();
    let before = log(&bench);
    let (mapper, _) = start(&bench.table("one,,,,0 2048 log-writes {a} {c};two,,,,0 2048 log-writes {b} {c}")).unwrap();
    let error = mapper.activate_all().unwrap_err().to_string();
    assert!(error.contains("two: it cannot be served") && error.contains("`one`"), "{error}");
    assert!(log(&bench) == before, "the log has changed");
}
