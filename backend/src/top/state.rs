//! What is on the screen, and what keys and answers make of it.

use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::rates::Rates;
use crate::stats::Snapshot;

/// Intervals that `+` and `-` go through, in milliseconds.
const INTERVALS: [u64; 9] = [100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000];

/// A device: the latest numbers, and the rates to them from the ones before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    pub(super) now: Snapshot,
    pub(super) rates: Option<Rates>,
}

impl View {
    fn is_of(&self, snapshot: &Snapshot) -> bool {
        (self.now.minor, &self.now.name) == (snapshot.minor, &snapshot.name)
    }

    fn next(before: Option<&View>, now: Snapshot) -> View {
        let rates = before.and_then(|before| Rates::between(&before.now, &now));
        View { rates, now }
    }

    /// Requests that failed or were no valid ones, since the device was made.
    pub(super) fn errors(&self) -> u64 {
        let failed = self.now.device.kinds.values().fold(0u64, |sum, counters| sum.saturating_add(counters.errors));
        failed.saturating_add(self.now.device.refused)
    }
}

/// What the process said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// All devices that are shown.
    pub devices: Vec<Snapshot>,
    /// One of them with its segments.
    pub detail: Option<Snapshot>,
    /// Names of the command line that no device has.
    pub missing: Vec<String>,
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// At most to draw again.
    Nothing,
    /// The segments of the device that is now selected.
    Detail,
    /// New numbers, now.
    Numbers,
    /// To give the terminal back to the shell for a while.
    Stop,
    /// The end.
    Quit,
}

/// What is on the screen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Path of the control socket.
    pub socket: String,
    /// How often numbers are asked for.
    pub interval: Duration,
    /// Whether colours may be used.
    pub colour: bool,
    /// It is one picture, without keys.
    pub once: bool,
    /// Why there are no new numbers, if there should be.
    pub problem: Option<String>,
    pub(super) paused: bool,
    pub(super) help: bool,
    pub(super) answered: bool,
    pub(super) missing: Vec<String>,
    pub(super) devices: Vec<View>,
    pub(super) selected: usize,
    pub(super) detail: Option<View>,
}

impl State {
    /// New numbers.
    pub fn take(&mut self, answer: Answer) {
        self.problem = None;
        self.answered = true;
        self.missing = answer.missing;
        let old = std::mem::take(&mut self.devices);
        let next = |now| View::next(old.iter().find(|view| view.is_of(&now)), now);
        self.devices = answer.devices.into_iter().map(next).collect();
        // The selected device stays the selected one though others come and go.
        let before = old.get(self.selected);
        let same = before.and_then(|before| self.devices.iter().position(|view| view.is_of(&before.now)));
        self.selected = same.unwrap_or(self.selected).min(self.devices.len().saturating_sub(1));
        self.take_detail(answer.detail);
    }

    /// New numbers of the selected device; not of one that was selected when they were asked for.
    pub fn take_detail(&mut self, detail: Option<Snapshot>) {
        let selected = self.devices.get(self.selected);
        match detail.filter(|now| selected.is_some_and(|view| view.is_of(now))) {
            Some(now) => {
                let before = self.detail.take().filter(|before| before.is_of(&now));
                self.detail = Some(View::next(before.as_ref(), now));
            }
            None => self.detail = self.detail.take().filter(|old| selected.is_some_and(|view| view.is_of(&old.now))),
        }
    }

    /// Minor number of the selected device.
    pub fn selected_minor(&self) -> Option<u32> {
        self.devices.get(self.selected).map(|view| view.now.minor)
    }

    /// Whether numbers are to be asked for.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    fn select(&mut self, index: usize) -> Wish {
        let index = index.min(self.devices.len().saturating_sub(1));
        if index == self.selected {
            return Wish::Nothing;
        }
        self.selected = index;
        self.detail = None;
        Wish::Detail
    }

    /// A key was pressed.
    pub fn press(&mut self, key: KeyEvent) -> Wish {
        if key.kind == KeyEventKind::Release {
            return Wish::Nothing;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => return Wish::Quit,
            KeyCode::Char('z') if control => return Wish::Stop,
            KeyCode::Char('q') => return Wish::Quit,
            _ if std::mem::take(&mut self.help) => return Wish::Nothing,
            _ => {}
        }
        match key.code {
            KeyCode::Down | KeyCode::Char('j') => self.select(self.selected.saturating_add(1)),
            KeyCode::Up | KeyCode::Char('k') => self.select(self.selected.saturating_sub(1)),
            KeyCode::PageDown => self.select(self.selected.saturating_add(10)),
            KeyCode::PageUp => self.select(self.selected.saturating_sub(10)),
            KeyCode::Home | KeyCode::Char('g') => self.select(0),
            KeyCode::End | KeyCode::Char('G') => self.select(usize::MAX),
            KeyCode::Char('+' | '=') => self.lengthen(true),
            KeyCode::Char('-') => self.lengthen(false),
            KeyCode::Char('p' | ' ') => {
                self.paused = !self.paused;
                if self.paused { Wish::Nothing } else { Wish::Numbers }
            }
            KeyCode::Char('?' | 'h') => {
                self.help = true;
                Wish::Nothing
            }
            _ => Wish::Nothing,
        }
    }

    fn lengthen(&mut self, longer: bool) -> Wish {
        let mut steps = INTERVALS.into_iter().map(Duration::from_millis);
        let step = match longer {
            true => steps.find(|step| *step > self.interval),
            false => steps.rev().find(|step| *step < self.interval),
        };
        self.interval = step.unwrap_or(self.interval);
        Wish::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(minor: u32) -> Snapshot {
        Snapshot { name: format!("d{minor}"), minor, ..Snapshot::default() }
    }

    fn answer(minors: &[u32]) -> Answer {
        Answer { devices: minors.iter().map(|minor| device(*minor)).collect(), ..Answer::default() }
    }

    fn key(state: &mut State, code: KeyCode) -> Wish {
        state.press(KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn the_selection_follows_its_device() {
        let mut state = State::default();
        assert_eq!(key(&mut state, KeyCode::Down), Wish::Nothing, "there is none yet");
        state.take(answer(&[0, 1, 2]));
        assert_eq!(key(&mut state, KeyCode::Char('j')), Wish::Detail);
        assert_eq!(state.selected_minor(), Some(1));
        state.take_detail(Some(device(0)));
        assert_eq!(state.detail, None, "an answer from before");
        state.take_detail(Some(device(1)));
        assert!(state.detail.is_some());
        state.take(answer(&[1, 2]));
        assert_eq!(state.selected_minor(), Some(1));
        assert!(state.detail.is_some());
        state.take(answer(&[2]));
        assert_eq!((state.selected_minor(), &state.detail), (Some(2), &None));
        state.take(answer(&[]));
        assert_eq!(state.selected_minor(), None);
        assert_eq!(key(&mut state, KeyCode::End), Wish::Nothing);
    }

    #[test]
    fn keys_do_what_the_help_says() {
        let mut state = State { interval: Duration::from_secs(1), ..State::default() };
        state.take(answer(&[0, 1, 2]));
        assert_eq!(key(&mut state, KeyCode::End), Wish::Detail);
        assert_eq!(state.selected_minor(), Some(2));
        assert_eq!(key(&mut state, KeyCode::Up), Wish::Detail);
        assert_eq!(key(&mut state, KeyCode::Home), Wish::Detail);
        assert_eq!(key(&mut state, KeyCode::Up), Wish::Nothing);
        key(&mut state, KeyCode::Char('+'));
        assert_eq!(state.interval, Duration::from_secs(2));
        (0..20).for_each(|_| assert_eq!(key(&mut state, KeyCode::Char('-')), Wish::Nothing));
        assert_eq!(state.interval, Duration::from_millis(100));
        (0..20).for_each(|_| assert_eq!(key(&mut state, KeyCode::Char('+')), Wish::Nothing));
        assert_eq!(state.interval, Duration::from_secs(60));
        assert_eq!(key(&mut state, KeyCode::Char('p')), Wish::Nothing);
        assert!(state.is_paused());
        assert_eq!(key(&mut state, KeyCode::Char('p')), Wish::Numbers);
        key(&mut state, KeyCode::Char('?'));
        assert!(state.help);
        assert_eq!(key(&mut state, KeyCode::Char('x')), Wish::Nothing);
        assert!(!state.help);
        assert_eq!(key(&mut state, KeyCode::Char('q')), Wish::Quit);
        assert_eq!(state.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Wish::Quit);
    }
}
