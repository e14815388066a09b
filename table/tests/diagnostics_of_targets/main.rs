//! One snapshot for each kind of mistake in the arguments of targets other than the plain ones.

mod copies;
mod faulty;
mod flakey;
mod small;

use std::sync::Arc;

use dm_table::{Format, Source, parse};
use expect_test::Expect;

fn check(text: &str, expect: Expect) {
    let source = Arc::new(Source::new("disk.table", text));
    let refusal = parse(source, Format::Auto).expect_err("this is a mistake");
    expect.assert_eq(&format!("{refusal}\n"));
}
