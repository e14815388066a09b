//! Any text as a table file.

use std::sync::Arc;

use dm_table::{Device, Diagnostic, Format, Source, Span, Table, TableFile, Target, parse};

/// Reads `data` in every format. What is accepted is printed and read back; what is refused is explained.
///
/// # Panics
/// Where printing and reading disagree, or a place is not in the text.
pub fn table(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for format in [Format::Auto, Format::Plain, Format::Concise] {
        match parse(Arc::new(Source::new("fuzz", text.as_ref())), format) {
            Ok(file) => accepted(&file),
            Err(refusal) => explained(&refusal),
        }
    }
}

fn accepted(file: &TableFile) {
    match file.load_order() {
        Ok(order) => in_order(file, &order),
        Err(refusal) => explained(&refusal),
    }
    for device in &file.devices {
        places(file, device);
        let printed = device.table.to_string();
        let again = read(&printed, Format::Plain);
        assert_eq!(again.devices.len(), 1, "one table was printed: {printed:?}");
        assert_eq!(bare(&again.devices[0].table), bare(&device.table), "{printed:?}");
        assert_eq!(again.devices[0].table.to_string(), printed);
    }
    // A device of a plain file has no name, and the concise form cannot do without.
    let mut named = file.clone();
    for device in &mut named.devices {
        device.name.get_or_insert_with(|| "plain".to_owned());
    }
    let concise = named.display_concise().to_string();
    let again = read(&concise, Format::Concise);
    assert_eq!(again.display_concise().to_string(), concise);
    let both = |file: &TableFile| file.devices.iter().map(without_places).collect::<Vec<_>>();
    assert_eq!(both(&again), both(&named), "{concise:?}");
}

fn read(text: &str, format: Format) -> TableFile {
    parse(Arc::new(Source::new("printed", text)), format)
        .unwrap_or_else(|refusal| panic!("what was printed is not read: {text:?}\n{refusal}"))
}

/// A device stands after those that it uses, and each stands once.
fn in_order(file: &TableFile, order: &[usize]) {
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    assert!(sorted.into_iter().eq(0..file.devices.len()), "{order:?}");
    let names = file.mapper_names();
    let mut loaded = vec![false; file.devices.len()];
    for &index in order {
        for used in file.devices[index].table.device_refs().filter_map(|dev| names.get(dev)) {
            assert!(loaded[used], "{index} is loaded before {used}, on which it stands");
        }
        loaded[index] = true;
    }
}

/// Every place is a piece of the text, and lines follow on each other.
fn places(file: &TableFile, device: &Device) {
    let text = file.source.text();
    let check = |span: Span| assert!(text.get(span.start..span.end).is_some(), "{span:?} in {text:?}");
    check(device.name_span);
    let mut end = 0;
    for line in &device.table.lines {
        [line.span, line.start_span, line.len_span, line.type_span].into_iter().for_each(check);
        line.target.device_refs().for_each(|dev| check(dev.span));
        assert!(line.start.get() == end && line.len.get() > 0, "{line:?} begins at {end}");
        end += line.len.get();
    }
    assert_eq!(device.table.len().get(), end);
}

/// A refusal has a reason, a place, and a text that a terminal can show.
fn explained(refusal: &Diagnostic) {
    assert!(!refusal.reason().is_empty());
    assert!(refusal.line() >= 1 && refusal.column() >= 1);
    let shown = refusal.to_string();
    assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
}

fn without_places(device: &Device) -> Device {
    Device { name_span: Span::default(), table: Arc::new(bare(&device.table)), ..device.clone() }
}

/// A table as its printed form has it: without places, and without the device of an error line.
fn bare(table: &Table) -> Table {
    let mut table = table.clone();
    let none = Span::default();
    for line in &mut table.lines {
        (line.span, line.start_span, line.len_span, line.type_span) = (none, none, none, none);
        match &mut line.target {
            Target::Linear(linear) => (linear.dev.span, linear.start_span) = (none, none),
            Target::Striped(striped) => {
                for stripe in &mut striped.stripes {
                    (stripe.dev.span, stripe.start_span) = (none, none);
                }
            }
            Target::Zero => {}
            Target::Error(error) => error.dev = None,
            // What the others print is compared; the crate's own tests compare what they mean.
            other => *other = Target::Zero,
        }
    }
    table
}
