//! `ls --tree`: which device lies on which.

use super::console::Done;
use super::context::Context;
use super::name::Mangling;
use super::show;
use crate::control::schema::{Dep, Info};

/// Devices as deep as dmsetup draws them.
const DEEPEST: usize = 98;
/// Width where no terminal says another.
const WIDTH: usize = 80;

/// All devices of the process, each with what it lies on.
pub(super) struct Graph(Vec<(Info, Vec<Dep>)>);

impl Graph {
    pub fn new(nodes: Vec<(Info, Vec<Dep>)>) -> Graph {
        Graph(nodes)
    }

    fn find(&self, name: &str) -> Option<&(Info, Vec<Dep>)> {
        self.0.iter().find(|(info, _)| info.name == name)
    }

    /// What a device lies on.
    pub fn deps(&self, name: &str) -> &[Dep] {
        self.find(name).map_or(&[], |(_, deps)| deps)
    }

    /// The devices that lie on one.
    pub fn users<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Info> {
        let lies_on = move |deps: &[Dep]| deps.iter().any(|dep| dep.mapped && dep.name == name);
        self.0.iter().filter(move |(_, deps)| lies_on(deps)).map(|(info, _)| info)
    }
}

/// What `-o` says of the tree.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options {
    symbols: &'static Symbols,
    number: bool,
    kernel_name: bool,
    active: bool,
    open: bool,
    uuid: bool,
    rw: bool,
    inverted: bool,
    compact: bool,
    truncated: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Symbols {
    branch: &'static str,
    vertical: &'static str,
    last: &'static str,
    single: &'static str,
    first: &'static str,
}

static ASCII: Symbols = Symbols { branch: "|-", vertical: "| ", last: "`-", single: "---", first: "-+-" };
static UTF: Symbols =
    Symbols { branch: "├─", vertical: "│ ", last: "└─", single: "───", first: "─┬─" };
static VT100: Symbols = Symbols {
    branch: "\x1b(0\x0ftq\x1b(B",
    vertical: "\x1b(0\x0fx\x1b(B ",
    last: "\x1b(0\x0fmq\x1b(B",
    single: "\x1b(0\x0fqqq\x1b(B",
    first: "\x1b(0\x0fqwq\x1b(B",
};

impl Options {
    pub fn parse(text: &str) -> Result<Options, String> {
        let mut options = Options {
            symbols: if utf8_locale() { &UTF } else { &ASCII },
            number: true,
            kernel_name: false,
            active: false,
            open: false,
            uuid: false,
            rw: false,
            inverted: false,
            compact: false,
            truncated: true,
        };
        for option in text.split(',').filter(|option| !option.is_empty()) {
            match option {
                _ if "device".starts_with(option) => options.number = true,
                _ if "blkdevname".starts_with(option) => options.kernel_name = true,
                _ if "nodevice".starts_with(option) => options.number = false,
                // dmsetup takes these two and shows nothing for them.
                _ if "status".starts_with(option) || "table".starts_with(option) => {}
                _ if "active".starts_with(option) => options.active = true,
                _ if "open".starts_with(option) => options.open = true,
                _ if "uuid".starts_with(option) => options.uuid = true,
                _ if "rw".starts_with(option) => options.rw = true,
                _ if "utf".starts_with(option) => options.symbols = &UTF,
                _ if "vt100".starts_with(option) => options.symbols = &VT100,
                _ if "ascii".starts_with(option) => options.symbols = &ASCII,
                _ if "inverted".starts_with(option) => options.inverted = true,
                _ if "compact".starts_with(option) => options.compact = true,
                _ if "notrunc".starts_with(option) => options.truncated = false,
                _ => return Err(format!("Tree options not recognised: {option}.")),
            }
        }
        Ok(options)
    }

    fn attributes(&self, info: &Info, mangling: Mangling) -> String {
        let state = if info.suspended { "SUSPENDED" } else { "ACTIVE" };
        let mode = if info.read_only { "RO" } else { "RW" };
        let uuid = mangling.show(info.uuid.as_deref().unwrap_or_default());
        let (open, mode) = (info.open_count.to_string(), mode.to_owned());
        let all = [(self.active, state.to_owned()), (self.rw, mode), (self.open, open), (self.uuid, uuid)];
        let shown: Vec<String> = all.into_iter().filter(|(shown, _)| *shown).map(|(_, text)| text).collect();
        if shown.is_empty() { String::new() } else { format!(" [{}]", shown.join(", ")) }
    }

    /// Whether each chain of single devices stands on one line.
    fn on_one_line(&self) -> bool {
        self.compact && !(self.active || self.rw || self.open || self.uuid)
    }
}

fn utf8_locale() -> bool {
    let set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let name = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find(set);
    let value = name.and_then(|name| std::env::var(name).ok()).unwrap_or_default().to_ascii_lowercase();
    value.contains("utf-8") || value.contains("utf8")
}

/// A device of the process, or one that it lies on.
#[derive(Clone, Copy)]
enum Node<'a> {
    Mapped(&'a Info),
    Component(&'a Dep),
}

pub(super) fn show(context: &mut Context<'_>) -> Done {
    let graph = show::graph(context)?;
    if graph.0.is_empty() {
        context.console.say("No devices found");
    }
    let Ok(options) = Options::parse(context.options.value("options").unwrap_or_default()) else { return Ok(()) };
    let width = rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| usize::from(size.ws_col));
    let width = width.filter(|&width| width > 3 && options.symbols != &VT100).map_or(WIDTH, |width| width - 3);
    let text = draw(&graph, &options, context.mangling, width);
    context.console.print(&text);
    Ok(())
}

fn draw(graph: &Graph, options: &Options, mangling: Mangling, width: usize) -> String {
    let width = if options.truncated { width } else { usize::MAX };
    let mut drawing =
        Drawing { graph, options, mangling, width, text: String::new(), line: String::new(), above: Vec::new() };
    drawing.nodes(&drawing.roots());
    drawing.text
}

struct Drawing<'a> {
    graph: &'a Graph,
    options: &'a Options,
    mangling: Mangling,
    width: usize,
    text: String,
    line: String,
    // Of each device above: how far its children are indented, and whether others of its depth follow.
    above: Vec<(usize, bool)>,
}

impl<'a> Drawing<'a> {
    fn roots(&self) -> Vec<Node<'a>> {
        if !self.options.inverted {
            let unused = |(info, _): &&(Info, _)| self.graph.users(&info.name).next().is_none();
            return self.graph.0.iter().filter(unused).map(|(info, _)| Node::Mapped(info)).collect();
        }
        let mut roots: Vec<Node<'a>> = Vec::new();
        for (info, deps) in &self.graph.0 {
            if deps.is_empty() {
                roots.push(Node::Mapped(info));
            }
            for dep in deps.iter().filter(|dep| !dep.mapped) {
                if !roots.iter().any(|node| matches!(node, Node::Component(seen) if seen.name == dep.name)) {
                    roots.push(Node::Component(dep));
                }
            }
        }
        roots
    }

    fn children(&self, node: Node<'a>) -> Vec<Node<'a>> {
        match (node, self.options.inverted) {
            (Node::Mapped(info), false) => {
                let child = |dep: &'a Dep| match self.graph.find(&dep.name).filter(|_| dep.mapped) {
                    Some((info, _)) => Node::Mapped(info),
                    None => Node::Component(dep),
                };
                self.graph.deps(&info.name).iter().map(child).collect()
            }
            (Node::Component(_), false) => Vec::new(),
            (Node::Mapped(info), true) => self.graph.users(&info.name).map(Node::Mapped).collect(),
            (Node::Component(component), true) => {
                let on = |deps: &[Dep]| deps.iter().any(|dep| !dep.mapped && dep.name == component.name);
                self.graph.0.iter().filter(|(_, deps)| on(deps)).map(|(info, _)| Node::Mapped(info)).collect()
            }
        }
    }

    fn nodes(&mut self, nodes: &[Node<'a>]) {
        for (index, &node) in nodes.iter().enumerate() {
            let more = index + 1 < nodes.len();
            let children = self.children(node);
            let children = if self.above.len() < DEEPEST { children } else { Vec::new() };
            let indent = self.node(node, more, !children.is_empty());
            self.above.push((indent, more));
            self.nodes(&children);
            self.above.pop();
        }
    }

    /// Draws a device, and says how far its children are indented beyond it.
    fn node(&mut self, node: Node<'a>, more: bool, has_children: bool) -> usize {
        let symbols = self.options.symbols;
        let continues = !self.line.is_empty();
        if !continues {
            self.indent(more);
        }
        if continues {
            self.line.push_str(if more { symbols.first } else { symbols.single });
        }
        let start = self.line.chars().count();
        let text = self.describe(node);
        self.line.push_str(&text);
        let on_one_line = self.options.on_one_line();
        let indent = if on_one_line { self.line.chars().count() - start } else { 0 };
        if !on_one_line || !has_children {
            self.end_line();
        }
        indent
    }

    fn indent(&mut self, more: bool) {
        let symbols = self.options.symbols;
        for (depth, &(indent, _)) in self.above.iter().enumerate() {
            self.line.push_str(&" ".repeat(indent + 1));
            self.line.push_str(match self.above.get(depth + 1) {
                None if more => symbols.branch,
                None => symbols.last,
                Some((_, true)) => symbols.vertical,
                Some((_, false)) => "  ",
            });
        }
    }

    fn describe(&self, node: Node<'_>) -> String {
        let (name, number, attributes) = match node {
            Node::Mapped(info) => {
                let attributes = self.options.attributes(info, self.mangling);
                (self.mangling.show(&info.name), Some((info.major, info.minor)), attributes)
            }
            Node::Component(dep) => match dep.major.zip(dep.minor) {
                Some(number) if self.options.kernel_name => (format!(" <{}>", dep.name), Some(number), String::new()),
                Some(number) => (String::new(), Some(number), String::new()),
                None => (format!(" {}", dep.name), None, String::new()),
            },
        };
        let number = number.filter(|_| self.options.number).map(|(major, minor)| format!(" ({major}:{minor})"));
        format!("{name}{}{attributes}", number.unwrap_or_default())
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let length = line.chars().count();
        match length > self.width {
            true => {
                self.text.extend(line.chars().take(self.width.saturating_sub(1)));
                self.text.push_str("...");
            }
            false => self.text.push_str(&line),
        }
        self.text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph() -> Graph {
        let device =
            |name: &str, minor, deps: &[Dep]| (Info { name: name.into(), minor, ..Info::default() }, deps.to_vec());
        let mapped = |name: &str, minor| Dep { major: Some(0), minor: Some(minor), name: name.into(), mapped: true };
        let vda = Dep { major: Some(254), minor: Some(0), name: "vda".into(), mapped: false };
        let file = Dep { major: None, minor: None, name: "/img/a.raw".into(), mapped: false };
        Graph::new(vec![
            device("home", 0, std::slice::from_ref(&vda)),
            device("low1", 1, &[vda, file]),
            device("low2", 2, &[]),
            device(r"to\x20p", 3, &[mapped("low1", 1), mapped("low2", 2)]),
        ])
    }

    fn tree(options: &str, width: usize) -> String {
        let options = Options::parse(&format!("ascii,{options}")).unwrap();
        draw(&graph(), &options, Mangling::Auto, width)
    }

    #[test]
    fn a_tree_has_what_a_device_lies_on_below_it() {
        let expected =
            "home (0:0)\n `- (254:0)\nto p (0:3)\n |-low1 (0:1)\n |  |- (254:0)\n |  `- /img/a.raw\n `-low2 (0:2)\n";
        assert_eq!(tree("", 80), expected);
        assert_eq!(tree("utf", 80).lines().nth(4), Some(" │  ├─ (254:0)"));
        assert_eq!(tree("nodev,blk", 80).lines().nth(1), Some(" `- <vda>"));
        assert_eq!(tree("active,rw,open,uuid", 80).lines().next(), Some("home (0:0) [ACTIVE, RW, 0, ]"));
        assert_eq!(tree("", 9).lines().next(), Some("home (0:..."));
        assert_eq!(tree("notrunc", 9).lines().next(), Some("home (0:0)"));
        assert_eq!(Options::parse("foo").unwrap_err(), "Tree options not recognised: foo.");
    }

    #[test]
    fn upside_down_and_on_few_lines() {
        let expected = " (254:0)\n |-home (0:0)\n `-low1 (0:1)\n    `-to p (0:3)\n /img/a.raw\n `-low1 (0:1)\n    `-to p (0:3)\nlow2 (0:2)\n `-to p (0:3)\n";
        assert_eq!(tree("inverted", 80), expected);
        let expected = "home (0:0)--- (254:0)\nto p (0:3)-+-low1 (0:1)-+- (254:0)\n           |            `- /img/a.raw\n           `-low2 (0:2)\n";
        assert_eq!(tree("compact", 80), expected);
    }
}
