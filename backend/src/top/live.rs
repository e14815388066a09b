//! The terminal, its keys, and numbers that come meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, raise};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};

use super::source::Source;
use super::state::{Answer, State, Wish};
use super::view;
use crate::control::client::ClientError;
use crate::daemon::Signals;
use crate::stats::Snapshot;

/// How long a signal or an answer may go unseen.
const TICK: Duration = Duration::from_millis(50);
/// The first rates come sooner than the interval says.
const FIRST: Duration = Duration::from_millis(300);
/// From then on it is said that there is no answer.
const PATIENCE: Duration = Duration::from_secs(2);

enum Ask {
    All(Option<u32>),
    Detail(u32),
}

enum Reply {
    All(Answer),
    Detail(Option<Snapshot>),
    Failed(ClientError),
}

/// Shows `state` until the user or a signal ends it.
pub(super) fn run(source: Source, names: Vec<String>, mut state: State) -> Result<(), String> {
    let signals = Signals::block().map_err(|error| format!("cannot block signals: {error}"))?;
    let ended = Arc::new(AtomicBool::new(false));
    let flag = ended.clone();
    spawn("signals", move || {
        if signals.wait().is_ok() {
            flag.store(true, Relaxed);
        }
        // A terminal that takes no output must not keep the process.
        if signals.wait().is_ok() {
            std::process::exit(1);
        }
    })?;
    let ((ask, asked), (reply, replies)) = (channel(), channel());
    spawn("numbers", move || answer(source, &names, &asked, &reply))?;
    // Restores the terminal on a panic, too.
    let terminal = ratatui::try_init();
    let mut terminal = terminal.map_err(|error| format!("cannot set up the terminal: {error}"))?;
    let mut talk = Talk { ask, replies, asked_at: None, next: Instant::now(), detail: None };
    let shown = show(&mut terminal, &mut state, &mut talk, &ended);
    ratatui::restore();
    shown.map_err(|error| format!("the terminal: {error}"))
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let spawned = thread::Builder::new().name(name.into()).spawn(body);
    spawned.map(drop).map_err(|error| format!("cannot start a thread: {error}"))
}

/// A process that does not answer must not keep keys from being taken: it is asked on a thread of its own.
fn answer(mut source: Source, names: &[String], asked: &Receiver<Ask>, reply: &Sender<Reply>) {
    for ask in asked {
        let said = match ask {
            Ask::All(selected) => source.answer(names, selected).map(Reply::All),
            Ask::Detail(minor) => source.detail(minor).map(Reply::Detail),
        };
        if reply.send(said.unwrap_or_else(Reply::Failed)).is_err() {
            return;
        }
    }
}

/// Questions and answers, one at a time.
struct Talk {
    ask: Sender<Ask>,
    replies: Receiver<Reply>,
    /// When the question that is open was asked.
    asked_at: Option<Instant>,
    /// When all is to be asked for.
    next: Instant,
    /// Device whose segments are wanted sooner.
    detail: Option<u32>,
}

impl Talk {
    /// Whether there is something new to draw.
    fn turn(&mut self, state: &mut State) -> std::io::Result<bool> {
        let gone = || std::io::Error::other("the thread that asks for numbers has ended");
        let now = Instant::now();
        let mut news = false;
        match self.replies.try_recv() {
            Ok(reply) => {
                self.asked_at = None;
                news = true;
                self.take(reply, state);
            }
            Err(TryRecvError::Disconnected) => return Err(gone()),
            Err(TryRecvError::Empty) => {}
        }
        if let Some(waiting) = self.asked_at.map(|at| now - at) {
            if waiting > PATIENCE.max(2 * state.interval.min(PATIENCE)) && state.problem.is_none() {
                state.problem = Some(format!("{} has not answered for {} s", state.socket, waiting.as_secs()));
                news = true;
            }
            return Ok(news);
        }
        let ask = match self.detail.take() {
            _ if now >= self.next && !state.is_paused() => {
                self.next = now + state.interval;
                Ask::All(state.selected_minor())
            }
            Some(minor) => Ask::Detail(minor),
            None => return Ok(news),
        };
        self.asked_at = Some(now);
        self.ask.send(ask).map_err(|_| gone())?;
        Ok(news)
    }

    fn take(&mut self, reply: Reply, state: &mut State) {
        match reply {
            Reply::All(answer) => {
                if state.selected_minor().is_none() {
                    self.next = Instant::now() + FIRST.min(state.interval);
                }
                state.take(answer);
            }
            Reply::Detail(detail) => state.take_detail(detail),
            Reply::Failed(error) => state.problem = Some(error.to_string()),
        }
    }
}

fn show(terminal: &mut DefaultTerminal, state: &mut State, talk: &mut Talk, ended: &AtomicBool) -> std::io::Result<()> {
    let mut draw = true;
    while !ended.load(Relaxed) {
        draw |= talk.turn(state)?;
        if std::mem::take(&mut draw) {
            terminal.draw(|frame| view::render(state, frame.area(), frame.buffer_mut()))?;
        }
        if !event::poll(TICK)? {
            continue;
        }
        draw = true;
        let Event::Key(key) = event::read()? else { continue };
        let interval = state.interval;
        match state.press(key) {
            Wish::Quit => return Ok(()),
            Wish::Numbers => talk.next = Instant::now(),
            Wish::Detail => talk.detail = state.selected_minor(),
            Wish::Stop => {
                ratatui::restore();
                raise(Signal::SIGTSTP)?;
                *terminal = ratatui::try_init()?;
            }
            Wish::Nothing if interval != state.interval => talk.next = Instant::now() + state.interval,
            Wish::Nothing => {}
        }
    }
    Ok(())
}
