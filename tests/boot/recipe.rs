//! Recipes of README.md, run as they stand there: the commands of a block, one after the other, with other paths for those of
//! the reader's machine.

use std::cell::RefCell;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dm_tests::daemon::{Daemon, binary};

use crate::host::Scratch;

const README: &str = include_str!("../../README.md");

/// The commands of the first shell block behind a text of README.md, those of several lines joined.
pub fn commands(after: &str) -> Vec<String> {
    let (_, text) = README.split_once(after).unwrap_or_else(|| panic!("README.md has no {after:?}"));
    let (_, block) = text.split_once("\n```sh\n").expect("a shell block");
    let (block, _) = block.split_once("\n```").expect("a fence is closed");
    let lines = block.replace("\\\n", " ");
    lines.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

/// Where commands are run.
pub struct Kitchen<'a> {
    scratch: &'a Scratch,
    // What README says, and what it is here.
    paths: Vec<(String, String)>,
    variables: RefCell<Vec<(String, String)>>,
}

impl<'a> Kitchen<'a> {
    /// In the directory of the test's files, with our program on the PATH.
    pub fn new(scratch: &'a Scratch, paths: &[(&str, &Path)]) -> Kitchen<'a> {
        let programs = scratch.path("bin");
        std::fs::create_dir(&programs).expect("a directory");
        symlink(binary(), programs.join("vhost-user-dm")).expect("a link");
        // Long paths are no names of sockets.
        symlink(scratch.path("."), scratch.socket("files")).expect("a link");
        let path = std::env::var("PATH").expect("a PATH");
        let variables = RefCell::new(vec![("PATH".to_owned(), format!("{}:{path}", programs.display()))]);
        let paths = paths.iter().map(|(ours, theirs)| ((*ours).to_owned(), theirs.display().to_string())).collect();
        Kitchen { scratch, paths, variables }
    }

    fn shell(&self, line: &str) -> Command {
        let line = self.paths.iter().fold(line.to_owned(), |line, (ours, theirs)| line.replace(ours, theirs));
        let mut command = Command::new("sh");
        command.args(["-euc", &line]).current_dir(self.scratch.path(".")).stdin(Stdio::null());
        command.envs(self.variables.borrow().iter().map(|(name, value)| (name, value)));
        command
    }

    /// Does a command, to its end. What it printed.
    pub fn run(&self, line: &str) -> String {
        if let Some((name, value)) = line.strip_prefix("export ").and_then(|rest| rest.split_once('=')) {
            self.variables.borrow_mut().push((name.to_owned(), value.to_owned()));
            return String::new();
        }
        let output = self.shell(line).output().expect("run a shell");
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(output.status.success(), "README.md: {line}: {}\n{said}", output.status);
        said
    }

    /// Begins a command that serves, and waits until it does. The way to its socket.
    pub fn serve(&self, line: &str) -> (Daemon, PathBuf) {
        let line = line.split(" #").next().unwrap_or_default().trim().trim_end_matches('&');
        let (_, socket) = line.split_once("--socket-path=").unwrap_or_else(|| panic!("README.md: {line}: no socket"));
        let socket = self.scratch.socket("files").join(socket.split(' ').next().unwrap_or_default());
        let mut daemon = Daemon::spawn(self.shell(&format!("exec {line}")));
        daemon.wait_listening(&socket);
        (daemon, socket)
    }
}
