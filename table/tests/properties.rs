//! What holds for every text: printing and reading agree, places are right, and nothing panics.

use std::fmt::Write;
use std::sync::Arc;

use dm_table::{DevRef, Format, Sectors, Source, Table, TableFile, Target, parse};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// The arguments of a line, without places.
#[derive(Clone, Debug, PartialEq)]
enum Model {
    Linear(String, u64),
    Striped(u32, Vec<(String, u64)>),
    Zero,
    Error(Option<(String, u64)>),
}

impl Model {
    fn type_name(&self) -> &'static str {
        match self {
            Model::Linear(..) => "linear",
            Model::Striped(..) => "striped",
            Model::Zero => "zero",
            Model::Error(_) => "error",
        }
    }

    fn args(&self) -> Vec<String> {
        let pair = |(dev, start): &(String, u64)| [dev.clone(), start.to_string()];
        match self {
            Model::Linear(dev, start) => vec![dev.clone(), start.to_string()],
            Model::Striped(chunk, stripes) => {
                let counts = [stripes.len().to_string(), chunk.to_string()];
                counts.into_iter().chain(stripes.iter().flat_map(pair)).collect()
            }
            Model::Zero | Model::Error(None) => Vec::new(),
            Model::Error(Some(dev)) => pair(dev).to_vec(),
        }
    }

    /// A length that these arguments can have, about `len`.
    fn fit(&self, len: u64) -> u64 {
        match self {
            Model::Striped(chunk, stripes) => {
                let row = u64::from(*chunk) * stripes.len() as u64;
                len.next_multiple_of(row)
            }
            _ => len,
        }
    }

    fn of(target: &Target) -> Model {
        let pair = |dev: &DevRef, start: Sectors| (dev.text.clone(), start.get());
        match target {
            Target::Linear(linear) => Model::Linear(linear.dev.text.clone(), linear.start.get()),
            Target::Striped(striped) => {
                let chunk = u32::try_from(striped.chunk.get()).expect("read from 32 bits");
                Model::Striped(chunk, striped.stripes.iter().map(|stripe| pair(&stripe.dev, stripe.start)).collect())
            }
            Target::Zero => Model::Zero,
            Target::Error(error) => Model::Error(error.dev.as_ref().map(|(dev, start)| pair(dev, *start))),
            #[allow(unreachable_patterns)]
            other => panic!("no model of {other:?}"),
        }
    }
}

fn device() -> impl Strategy<Value = String> {
    prop_oneof![
        "[0-9]{1,4}:[0-9]{1,7}",
        "/dev/mapper/[a-c]",
        "/[^\\s\\x00#\u{a0}]{1,12}",
        "[^\\s\\x00#\u{a0}]{1,8}",
        Just("/srv/à, b; c\\.img".replace(' ', "")),
    ]
}

fn model() -> impl Strategy<Value = Model> {
    let pair = || (device(), any::<u64>());
    prop_oneof![
        3 => pair().prop_map(|(dev, start)| Model::Linear(dev, start)),
        2 => (1..100_000u32, vec(pair(), 1..5)).prop_map(|(chunk, stripes)| Model::Striped(chunk, stripes)),
        1 => Just(Model::Zero),
        1 => option::of(pair()).prop_map(Model::Error),
    ]
}

/// Lines that follow on each other: start, length, arguments.
fn lines() -> impl Strategy<Value = Vec<(u64, u64, Model)>> {
    vec((1..1u64 << 40, model()), 0..8).prop_map(|lines| {
        let mut start = 0;
        let place = |(len, model): (u64, Model)| {
            let len = model.fit(len);
            start += len;
            (start - len, len, model)
        };
        lines.into_iter().map(place).collect()
    })
}

fn blanks() -> impl Strategy<Value = &'static str> {
    select(vec![" ", "  ", "\t", " \t ", "\x0b"])
}

/// The same lines as someone may write them: blanks, zeros and signs in front, comments, CRLF.
fn written() -> impl Strategy<Value = (Vec<(u64, u64, Model)>, String)> {
    let noise = (blanks(), select(vec!["", "+", "00", "+0"]), select(vec!["", " # x", "\t#", "  "]), any::<u8>());
    (lines(), vec(noise, 8), select(vec!["\n", "\r\n"])).prop_map(|(lines, noise, end)| {
        let mut text = String::new();
        for ((start, len, model), (blank, sign, comment, bits)) in lines.iter().zip(noise) {
            if bits & 1 == 1 {
                write!(text, "{blank}# {end}{end}{blank}").expect("in memory");
            }
            write!(text, "{sign}{start}{blank}{sign}{len}{blank}{}", model.type_name()).expect("in memory");
            model.args().iter().for_each(|arg| text.extend([blank, arg]));
            text.extend([comment, end]);
        }
        (lines, text)
    })
}

fn read(text: &str, format: Format) -> Result<TableFile, TestCaseError> {
    let source = Arc::new(Source::new("t", text));
    parse(source, format).map_err(|refusal| TestCaseError::fail(format!("{refusal}\nin {text:?}")))
}

fn printed(lines: &[(u64, u64, Model)]) -> String {
    let line = |(start, len, model): &(u64, u64, Model)| {
        let args = if let Model::Error(_) = model { Vec::new() } else { model.args() };
        format!("{start} {len} {} {}", model.type_name(), args.join(" "))
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Each part of a plain table stands where its span says.
fn check_spans(file: &TableFile, table: &Table) -> Result<(), TestCaseError> {
    let at = |span: dm_table::Span| &file.source.text()[span.start..span.end];
    for line in &table.lines {
        prop_assert_eq!(at(line.start_span).parse(), Ok(line.start.get()));
        prop_assert_eq!(at(line.len_span).parse(), Ok(line.len.get()));
        prop_assert_eq!(at(line.type_span), line.target.type_name());
        prop_assert!(line.span.start == line.start_span.start && line.span.end >= line.type_span.end);
        for dev in line.target.device_refs() {
            prop_assert_eq!(at(dev.span), &dev.text);
            prop_assert!(line.span.start < dev.span.start && dev.span.end <= line.span.end);
        }
        if let Target::Linear(linear) = &line.target {
            prop_assert_eq!(at(linear.start_span).parse(), Ok(linear.start.get()));
        }
    }
    Ok(())
}

fn device_name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-zA-Z0-9#+.:=@_-]{1,20}", "[ -.0-\\[\\]-~à]{1,20}", "[,;\\\\ ]{1,5}"]
}

/// Text made of what tables are made of, in any order.
fn soup() -> impl Strategy<Value = String> {
    let words = vec![
        "0",
        "8",
        "16",
        "+8",
        "-1",
        "18446744073709551616",
        "0x10",
        " ",
        "\t",
        "\n",
        "\r\n",
        ",",
        ";",
        "\\",
        "#",
        ":",
        "zero",
        "linear",
        "striped",
        "error",
        "/dev/vda",
        "/dev/mapper/a",
        "254:0",
        "2 8 a 0 b 0",
        "0 8 zero",
        "a: ",
        "a,,,,",
        "b,u,5,ro,",
        "\0",
        "\u{a0}",
        "日本",
        "e\u{301}",
        "\u{feff}",
        "rw",
        "0 8 linear /dev/mapper/b 0",
    ];
    vec(select(words), 0..40).prop_map(|words| words.concat())
}

/// Everything that can be done with a text, however wrong it is.
fn exercise(text: &str) {
    for format in [Format::Auto, Format::Plain, Format::Concise] {
        let source = Arc::new(Source::new("t", text));
        let refusal = match parse(Arc::clone(&source), format) {
            Err(refusal) => refusal,
            Ok(file) => {
                let concise = file.display_concise().to_string();
                let named = file.devices.iter().all(|device| device.name.is_some());
                assert!(!named || parse(Arc::new(Source::new("t", concise)), Format::Concise).is_ok(), "{text:?}");
                match file.load_order() {
                    Ok(order) => {
                        assert_eq!(order.len(), file.devices.len());
                        continue;
                    }
                    Err(refusal) => refusal,
                }
            }
        };
        assert!(!refusal.reason().is_empty());
        assert!(refusal.line() <= text.matches('\n').count() + 1);
        let shown = refusal.to_string();
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read((lines, text) in written()) {
        let file = read(&text, Format::Auto)?;
        let table = &file.devices[0].table;
        let models: Vec<_> = table.lines.iter().map(|l| (l.start.get(), l.len.get(), Model::of(&l.target))).collect();
        prop_assert_eq!(&models, &lines);
        prop_assert_eq!(table.to_string(), printed(&lines));
        prop_assert_eq!(table.len().get(), lines.last().map_or(0, |line| line.0 + line.1));
    }

    #[test]
    fn what_is_printed_is_read(lines in lines()) {
        let text = printed(&lines);
        let file = read(&text, Format::Auto)?;
        prop_assert_eq!(file.devices[0].table.to_string(), text);
        check_spans(&file, &file.devices[0].table)?;
    }

    #[test]
    fn concise_is_read_back(
        devices in vec((device_name(), option::of(device_name()), option::of(0..1u32 << 20), any::<bool>(), lines()), 0..5)
    ) {
        // Built as a text of one device each, because a name or a uuid may come twice.
        let mut texts = Vec::new();
        for (index, (name, uuid, minor, read_only, lines)) in devices.iter().enumerate() {
            let escape = |text: &str| text.chars().flat_map(|c| ['\\', c]).collect::<String>();
            let (name, uuid) = (escape(&format!("{index}{name}")), uuid.as_ref().map(|uuid| escape(&format!("{index}{uuid}"))));
            let minor = minor.map(|minor| minor.to_string()).unwrap_or_default();
            let flags = if *read_only { "ro" } else { "" };
            let table = printed(lines).split('\n').map(escape).collect::<Vec<_>>().join(",");
            texts.push(format!("{name}, {},\n{minor},{flags},{table};", uuid.unwrap_or_default()));
        }
        let file = read(&texts.join(" \n"), Format::Concise)?;
        let concise = file.display_concise().to_string();
        let again = read(&concise, Format::Concise)?;
        prop_assert_eq!(again.display_concise().to_string(), concise);
        prop_assert_eq!(again.devices.len(), devices.len());
        for ((one, two), (.., read_only, lines)) in file.devices.iter().zip(&again.devices).zip(&devices) {
            prop_assert_eq!((&one.name, &one.uuid, one.minor, one.read_only), (&two.name, &two.uuid, two.minor, *read_only));
            prop_assert_eq!(one.table.to_string(), printed(lines));
            prop_assert_eq!(two.table.to_string(), printed(lines));
        }
    }

    #[test]
    fn several_devices_as_dmsetup_prints_them(tables in vec(lines(), 1..4)) {
        let mut text = String::new();
        for (index, lines) in tables.iter().enumerate() {
            for line in printed(lines).split('\n') {
                writeln!(text, "disk {index}: {line}").expect("in memory");
            }
        }
        let file = read(&text, Format::Auto)?;
        prop_assert_eq!(file.devices.len(), tables.len());
        for (index, (device, lines)) in file.devices.iter().zip(&tables).enumerate() {
            prop_assert_eq!(device.name.clone(), Some(format!("disk {index}")));
            prop_assert_eq!(device.table.to_string(), printed(lines));
        }
        for device in &file.devices {
            check_spans(&file, &device.table)?;
        }
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..300)) {
        exercise(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_words_panic(text in soup()) {
        exercise(&text);
    }
}
