use super::*;

fn device(name: &str, minor: u32) -> Info {
    Info { name: name.into(), minor, live: true, targets: 1, ..Info::default() }
}

/// Transcript 4, but for the line `Read Ahead`.
#[test]
fn info_in_words() {
    let a = device("a", 0);
    let text = "Name:              a\nState:             ACTIVE\nTables present:    LIVE\nOpen count:        0\n\
                Event number:      0\nMajor, minor:      0, 0\nNumber of targets: 1\n\n";
    assert_eq!(info_text(&a, Mangling::Auto), text);
    let b = Info { uuid: Some("U-1".into()), inactive: true, ..device("b", 1) };
    let text = info_text(&b, Mangling::Auto);
    assert!(text.contains("Tables present:    LIVE & INACTIVE\n"), "{text}");
    assert!(text.ends_with("Number of targets: 1\nUUID: U-1\n\n"), "{text}");
    let n = Info { live: false, read_only: true, suspended: true, deferred_remove: true, ..device("n", 2) };
    let text = info_text(&n, Mangling::Auto);
    assert!(
        text.contains("State:             SUSPENDED (READ-ONLY) (DEFERRED REMOVE)\nTables present:    None\n"),
        "{text}"
    );
}

/// Transcript 4.
#[test]
fn info_in_columns() {
    let options = super::super::options::Options::default();
    let columns = |devices: &[Info]| {
        let mut report = Report::new(&options, &DEVICE, INFO).unwrap();
        for info in devices {
            report.add(&|id| value(info, None, Mangling::Auto, id));
        }
        report.print()
    };
    let b = Info { uuid: Some("U-1".into()), ..device("b", 1) };
    let text = "Name             Maj Min Stat Open Targ Event  UUID                            \n\
                a                  0   0 L--w    0    1      0                                 \n\
                b                  0   1 L--w    0    1      0 U-1                             \n";
    assert_eq!(columns(&[device("a", 0), b]), text);
    let a = Info { suspended: true, inactive: true, ..device("a", 0) };
    assert!(columns(&[a]).contains(" LIsw "));
    let c2 = Info { read_only: true, minor: 50, name: r"\x20c2".into(), ..device("", 0) };
    assert!(columns(&[c2]).contains("\n c2                0  50 L--r "));
    let (name, uuid) = ("n".repeat(127), "u".repeat(128));
    let long = Info { name: name.clone(), uuid: Some(uuid.clone()), ..device("", 0) };
    assert!(columns(&[long]).contains(&format!("\n{name}   0   0 L--w    0    1      0 {uuid}\n")));
}

/// Transcript 4.
#[test]
fn tables_in_the_concise_form() {
    let line =
        |start, len, target: &str, params: &str| Line { start, len, target: target.into(), params: params.into() };
    let (zero, error) = (line(0, 8, "zero", ""), line(8, 8, "error", ""));
    let c2 = Info { uuid: Some("uu2".into()), read_only: true, ..device("c2", 1) };
    assert_eq!(concise(&c2, Mangling::Auto, &[&zero, &error]), "c2,uu2,1,ro,0 8 zero ,8 8 error ");
    let c8 = device(r"c\x2c8", 4);
    assert_eq!(concise(&c8, Mangling::Auto, &[&zero]), r"c\,8,,4,rw,0 8 zero ");
    let c3 = concise(&device("c3", 50), Mangling::Auto, &[&line(0, 8, "linear", "254:0 0")]);
    assert_eq!(c3, "c3,,50,rw,0 8 linear 254:0 0");
}

/// Transcript 4.
#[test]
fn lines_and_what_they_lie_on() {
    let line = Line { start: 0, len: 100, target: "zero".into(), params: String::new() };
    assert_eq!(line_text(&line), "0 100 zero ");
    assert_eq!(line_text(&Line::default()), "");
    let vda = Dep { major: Some(254), minor: Some(0), name: "vda".into(), mapped: false };
    let lower = Dep { major: Some(0), minor: Some(3), name: r"a\x20b".into(), mapped: true };
    let file = Dep { major: None, minor: None, name: "/img/a.raw".into(), mapped: false };
    let one = std::slice::from_ref(&vda);
    assert_eq!(deps_text(one, Naming::Number, Mangling::Auto), "1 dependencies\t: (254, 0)");
    assert_eq!(deps_text(one, Naming::parse("devname").unwrap(), Mangling::Auto), "1 dependencies\t: (vda)");
    let all = [vda, lower, file];
    assert_eq!(deps_text(&all, Naming::Number, Mangling::Auto), "3 dependencies\t: (254, 0) (0, 3) (/img/a.raw)");
    assert_eq!(deps_text(&all, Naming::Name, Mangling::Auto), "3 dependencies\t: (vda) (a b) (/img/a.raw)");
    assert_eq!(deps_text(&[], Naming::Number, Mangling::Auto), "0 dependencies\t:");
    assert_eq!(Naming::parse("foo").unwrap_err(), "Option not recognised: foo.");
}
