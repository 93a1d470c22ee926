//! What the user says while a turn runs, on its way into that turn.
//!
//! Whoever says something learns whether the model was given it in this turn. If not, it is as if it had not been said,
//! and can be said again as the next turn.

use crate::error::Result;
use crate::os::Waker;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The words for a turn that runs, or waits to.
pub(crate) struct Steering {
    state: Mutex<SteeringState>,
    /// Wakes the turn.
    waker: Waker,
}

#[derive(Default)]
struct SteeringState {
    waiting: Vec<Words>,
    /// The turn takes words.
    is_open: bool,
}

/// Something that the user said, and who wants to know what came of it: dropped without an answer, it was not delivered.
pub(crate) struct Words {
    pub(crate) text: String,
    answer: Option<Box<dyn FnOnce(bool) + Send>>,
}

impl Words {
    pub(crate) fn new(text: String, answer: Box<dyn FnOnce(bool) + Send>) -> Words {
        Words {
            text,
            answer: Some(answer),
        }
    }

    /// The model was given them.
    pub(crate) fn delivered(mut self) {
        self.answer(true);
    }

    fn answer(&mut self, is_delivered: bool) {
        if let Some(answer) = self.answer.take() {
            answer(is_delivered);
        }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        self.answer(false);
    }
}

impl Steering {
    /// # Errors
    /// [`Kind::Io`](crate::error::Kind::Io) where the process has no descriptors left.
    pub(crate) fn new() -> Result<Steering> {
        let waker = Waker::new().map_err(|error| {
            let what = "cannot make an eventfd";
            crate::error::Error::os(crate::error::Kind::Io, what, error).with_retryable(true)
        })?;
        Ok(Steering {
            state: Mutex::default(),
            waker,
        })
    }

    /// Says something to the turn, from any thread. Where that takes no words it is answered at once.
    pub(crate) fn say(&self, words: Words) {
        let mut state = self.state();
        if state.is_open {
            state.waiting.push(words);
            drop(state);
            self.waker.wake();
        }
    }

    /// The turn takes words from now on, or no more. What waits then was not delivered.
    pub(crate) fn open(&self, is_open: bool) {
        let mut state = self.state();
        state.is_open = is_open;
        let undelivered = match is_open {
            true => Vec::new(),
            false => std::mem::take(&mut state.waiting),
        };
        drop(state);
        // Their answers are no matter of who waits for the lock.
        drop(undelivered);
    }

    /// What was said since this was asked last.
    pub(crate) fn take(&self) -> Vec<Words> {
        std::mem::take(&mut self.state().waiting)
    }

    /// Wakes whoever waits for words.
    pub(crate) fn waker(&self) -> &Waker {
        &self.waker
    }

    fn state(&self) -> MutexGuard<'_, SteeringState> {
        // Nothing that holds it can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    fn words(text: &str) -> (Words, Receiver<bool>) {
        let (answer, answered) = channel();
        let answer = Box::new(move |it| answer.send(it).unwrap());
        (Words::new(text.to_owned(), answer), answered)
    }

    #[test]
    fn answers_each_steer() {
        let steering = Steering::new().unwrap();
        let (early, answered) = words("early");
        steering.say(early);
        assert_eq!(answered.recv(), Ok(false));
        steering.open(true);
        let (first, first_answer) = words("first");
        let (late, late_answer) = words("late");
        steering.say(first);
        steering.take().into_iter().for_each(Words::delivered);
        steering.say(late);
        steering.open(false);
        assert_eq!(
            (first_answer.recv(), late_answer.recv()),
            (Ok(true), Ok(false))
        );
        assert!(first_answer.recv().is_err(), "it is said once");
    }
}
