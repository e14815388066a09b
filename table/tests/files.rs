//! Files as a whole: their form, devices that stand on each other, and sizes that nobody writes by hand.

use std::fmt::Write;
use std::sync::Arc;

use dm_table::{DevRef, Diagnostic, Format, Sectors, Source, Span, TableFile, parse};

fn read(text: impl Into<String>, format: Format) -> Result<TableFile, Diagnostic> {
    parse(Arc::new(Source::new("t", text)), format)
}

fn names(file: &TableFile) -> Vec<&str> {
    file.devices.iter().map(|device| device.name.as_deref().unwrap_or_default()).collect()
}

#[test]
fn a_text_without_lines_is_one_device_without_a_table() {
    for text in ["", "\n\n", "# nothing", " \t\r\n# 0 8 zero\n"] {
        let file = read(text, Format::Auto).expect("dmsetup takes it");
        assert_eq!(file.devices.len(), 1, "{text:?}");
        assert!(file.devices[0].table.is_empty() && file.devices[0].name.is_none());
        assert_eq!(file.devices[0].table.len(), Sectors::ZERO);
        assert_eq!(file.devices[0].table.to_string(), "");
    }
    assert!(read("", Format::Concise).expect("dmsetup takes it").devices.is_empty());
}

#[test]
fn the_form_is_told_from_the_first_line() {
    for (text, concise) in [
        ("0 8 zero", false),
        ("# a,b,c,d,e\n\n0 8 zero", false),
        ("0 8 linear /a,b,c,d,e 0", false),
        ("0 8zero,,,,", false),
        ("a b c d", false),
        ("a: 0 8 zero", false),
        ("a,b: 0 8 zero", false),
        ("root,,,,0 8 zero", true),
        ("root,\n,\n,\n,\n0 8 zero", true),
        ("my disk,,,,0 8 zero", true),
        ("my\\, disk,,,rw,0 8 zero", true),
        ("\n  root,,,,0 8 zero", true),
        ("0,8,zero", true),
        ("my disk, zero", false),
        ("my disk,a,b,c", false),
        ("my disk,a,b,c,", true),
    ] {
        let plain = read(text, Format::Plain).map(|file| file.devices).map_err(|refusal| refusal.reason().to_owned());
        let other = read(text, Format::Concise).map(|file| file.devices).map_err(|refusal| refusal.reason().to_owned());
        let guessed = read(text, Format::Auto).map(|file| file.devices).map_err(|refusal| refusal.reason().to_owned());
        assert_ne!(plain, other, "{text:?}");
        assert_eq!(guessed, if concise { other } else { plain }, "{text:?}");
    }
}

#[test]
fn concise_blanks_and_escapes() {
    let text = " c 6 ,\n u6 ,\t12 , ro,\n 0 8 linear /a\\,b\\;c\\\\d 0 ,\n # gone \\, too,8 8 zero # x,16 8 error ;\n  e,,,,;\n";
    let file = read(text, Format::Concise).expect("well formed");
    assert_eq!(names(&file), [" c 6 ", "e"]);
    let device = &file.devices[0];
    assert_eq!((device.uuid.as_deref(), device.minor, device.read_only), (Some("u6 "), Some(12), true));
    assert_eq!(device.table.to_string(), "0 8 linear /a,b;c\\d 0\n8 8 zero \n16 8 error ");
    assert!(file.devices[1].table.is_empty());
    assert_eq!(
        file.display_concise().to_string(),
        " c 6 ,u6 ,12,ro,0 8 linear /a\\,b\\;c\\\\d 0,8 8 zero ,16 8 error ;e,,,rw,;"
    );

    let at = |span: Span| &text[span.start..span.end];
    let line = &device.table.lines[0];
    assert_eq!(at(device.name_span), " c 6 ");
    assert_eq!(at(line.span), "0 8 linear /a\\,b\\;c\\\\d 0");
    assert_eq!(at(line.target.device_refs().next().expect("a device").span), "/a\\,b\\;c\\\\d");
    assert_eq!(at(device.table.lines[1].span), "8 8 zero");
}

#[test]
fn a_plain_file_has_no_name_in_the_concise_form() {
    let file = read("0 8 zero\n8 8 linear /dev/a,b 0", Format::Plain).expect("well formed");
    assert_eq!(file.display_concise().to_string(), ",,,rw,0 8 zero ,8 8 linear /dev/a\\,b 0");
}

#[test]
fn lines_of_one_name_are_one_device() {
    let text =
        "vg-root: 0 8 zero \nvg-swap: 0 16 error \r\n vg-root: 8 8 linear 254:0 0\n# none\nempty: \n8: 1: 0 8 zero\n";
    let file = read(text, Format::Auto).expect("well formed");
    assert_eq!(names(&file), ["vg-root", "vg-swap", "empty", "8: 1"]);
    assert_eq!(file.devices[0].table.to_string(), "0 8 zero \n8 8 linear 254:0 0");
    assert!(file.devices[2].table.is_empty());
    assert_eq!((file.devices[1].name_span.start, file.devices[1].name_span.end), (19, 26));
}

#[test]
fn a_colon_without_a_name_is_no_name() {
    let refusal = read(": 0 8 zero", Format::Auto).expect_err("no line starts so");
    assert_eq!(refusal.reason(), "Invalid format on line 1 of table t.");
}

#[test]
fn devices_are_loaded_before_their_users() {
    let text = "top,,,,0 8 linear /dev/mapper/mid 0,8 8 linear /dev/mapper/sp\\\\x20ace 0;\
                mid,,,,0 8 linear /dev/mapper/low 0,8 8 linear /dev/mapper/elsewhere 0;\
                alone,,,,0 8 zero;low,,,,0 8 zero;sp ace,,,,0 8 linear /dev/mapper/low 0;\
                c\\,8,,,,0 8 linear /dev/mapper/sp\\\\x20ace 0";
    let file = read(text, Format::Concise).expect("well formed");
    let order = file.load_order().expect("no loop");
    assert_eq!(order, [3, 1, 4, 0, 2, 5]);
    assert_eq!(file.devices[4].mapper_name().as_deref(), Some("sp\\x20ace"));

    let index = |text: &str| file.mapper_names().get(&DevRef { text: text.to_owned(), span: Span::default() });
    assert_eq!(index("/dev/mapper/c,8"), Some(5));
    assert_eq!(index("/dev/mapper/c\\x2c8"), Some(5));
    assert_eq!(index("/dev/mapper/elsewhere"), None);
    assert_eq!(index("low"), None);
}

#[test]
fn the_table_is_printed_with_names_of_ones_own() {
    let file =
        read("0 8 striped 2 4 /dev/vda 0 /dev/vdb 8\n8 8 linear /dev/vda 4", Format::Plain).expect("well formed");
    let table = &file.devices[0].table;
    let number = |dev: &DevRef| format!("254:{}", if dev.text == "/dev/vda" { 0 } else { 16 });
    assert_eq!(table.display_with(&number).to_string(), "0 8 striped 2 4 254:0 0 254:16 8\n8 8 linear 254:0 4");
    let devices: Vec<_> = table.device_refs().map(|dev| dev.text.as_str()).collect();
    assert_eq!(devices, ["/dev/vda", "/dev/vdb", "/dev/vda"]);
    assert_eq!(
        table.lines[0].target.lookup_failed(1, "ENOENT"),
        "striped: Couldn't parse stripe destination (-ENOENT)"
    );
    assert_eq!(table.lines[1].target.lookup_failed(0, "EBUSY"), "linear: Device lookup failed (-EBUSY)");
}

#[test]
fn sector_arithmetic_is_checked() {
    let max = Sectors::new(u64::MAX);
    assert_eq!(Sectors::new(3).bytes(), 1536);
    assert_eq!(max.bytes(), u64::MAX);
    assert_eq!(Sectors::from_bytes_floor(1535), Sectors::new(2));
    assert_eq!(max.checked_add(Sectors::new(1)), None);
    assert_eq!(Sectors::ZERO.checked_sub(Sectors::new(1)), None);
    assert_eq!(Sectors::new(5).checked_sub(Sectors::new(2)).and_then(|left| left.checked_add(max)), None);
    assert!(Sectors::ZERO.is_zero() && !max.is_zero());
    assert_eq!(Sectors::MAX_DEVICE.get(), ((1 << 63) - 1) / 512);
}

#[test]
fn a_long_table_is_read() {
    let mut text = String::new();
    for line in 0..200_000u64 {
        writeln!(text, "{} 8 linear /dev/sda1 {}", line * 8, line * 16).expect("in memory");
    }
    let file = read(text.as_str(), Format::Auto).expect("well formed");
    assert_eq!(file.devices[0].table.len(), Sectors::new(1_600_000));
    assert_eq!(file.devices[0].table.to_string(), text.trim_end());
}

#[test]
fn diagnostics_of_a_long_table_do_not_read_it_each_time() {
    // With a scan of the text for each, these would be 10^11 bytes.
    let text = "0 8 zero\n".repeat(100_000);
    let source = Source::new("t", text);
    let last =
        (0..100_000).map(|line| Diagnostic::warning(&source, Span { start: line * 9, end: line * 9 + 1 }, "odd"));
    assert_eq!(last.last().expect("there are some").line(), 100_000);
}

/// Devices 0, 1, … each on the next; the last on `bottom`.
fn chain(count: usize, bottom: &str) -> String {
    let mut text = String::new();
    for device in 0..count {
        let next = if device + 1 == count { bottom.to_owned() } else { format!("/dev/mapper/d{}", device + 1) };
        writeln!(text, "d{device},,,,0 8 linear {next} 0;").expect("in memory");
    }
    text
}

#[test]
fn a_deep_stack_is_ordered() {
    let file = read(chain(100_000, "/dev/vda"), Format::Concise).expect("well formed");
    let order = file.load_order().expect("no loop");
    assert!(order.iter().copied().eq((0..100_000).rev()));
}

#[test]
fn a_long_loop_is_told_in_short() {
    let file = read(chain(100_000, "/dev/mapper/d7"), Format::Concise).expect("well formed");
    let refusal = file.load_order().expect_err("a loop");
    assert_eq!(refusal.line(), 100_000);
    let told =
        "d7 -> d8 -> d9 -> d10 -> d11 -> d12 -> (99982 more) -> d99995 -> d99996 -> d99997 -> d99998 -> d99999 -> d7";
    assert!(refusal.to_string().contains(told), "{refusal}");
}

#[test]
fn words_and_lines_may_have_any_length() {
    for text in ["9", " ", "#", ",", ";", "\\", "x", "a: ", ": ", "a,", "0 8 zero ", "日", "-", "\u{301}"] {
        for format in [Format::Auto, Format::Plain, Format::Concise] {
            let long = text.repeat(100_000 / text.len());
            if let Err(refusal) = read(long, format) {
                assert!(refusal.to_string().len() < 10_000, "{text:?} {format:?}");
            }
        }
    }
}

#[test]
fn many_stripes_are_read() {
    let pairs = (0..50_000).map(|stripe| format!(" /dev/loop{stripe} {stripe}")).collect::<String>();
    let text = format!("0 800000 striped 50000 8{pairs}");
    let file = read(text.as_str(), Format::Plain).expect("well formed");
    assert_eq!(file.devices[0].table.to_string(), text);
    let short = read("0 8589934588 striped 4294967294 1 /dev/vda 0", Format::Plain).expect_err("a stripe is missing");
    assert_eq!(short.reason(), "striped: Not enough destinations specified");
}
