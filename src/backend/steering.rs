//! Messages of the user to a running turn.
//!
//! The sender of a message learns whether it was delivered to the model in this turn. If not, it has had no effect, and
//! can be sent again as the next turn.

use crate::error::Result;
use crate::os::Waker;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The queue of messages to a turn that runs or waits.
pub(crate) struct Steering {
    state: Mutex<SteeringState>,
    /// Wakes the turn's thread.
    waker: Waker,
}

#[derive(Default)]
struct SteeringState {
    queued: Vec<SteerMessage>,
    /// The turn accepts messages.
    is_open: bool,
}

/// A message of the user. Its sender is notified once; dropping it notifies that it was not delivered.
pub(crate) struct SteerMessage {
    pub(crate) text: String,
    on_result: Option<Box<dyn FnOnce(bool) + Send>>,
}

impl SteerMessage {
    pub(crate) fn new(text: String, on_result: Box<dyn FnOnce(bool) + Send>) -> SteerMessage {
        SteerMessage {
            text,
            on_result: Some(on_result),
        }
    }

    /// Notifies that the model was given the message.
    pub(crate) fn delivered(mut self) {
        self.notify(true);
    }

    fn notify(&mut self, is_delivered: bool) {
        if let Some(on_result) = self.on_result.take() {
            on_result(is_delivered);
        }
    }
}

impl Drop for SteerMessage {
    fn drop(&mut self) {
        self.notify(false);
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

    /// Queues a message, from any thread. Where the turn does not accept any it is dropped.
    pub(crate) fn send(&self, message: SteerMessage) {
        let mut state = self.state();
        if state.is_open {
            state.queued.push(message);
            drop(state);
            self.waker.wake();
        }
    }

    /// Sets whether the turn accepts messages. Closing drops those that are queued.
    pub(crate) fn open(&self, is_open: bool) {
        let mut state = self.state();
        state.is_open = is_open;
        let undelivered = match is_open {
            true => Vec::new(),
            false => std::mem::take(&mut state.queued),
        };
        drop(state);
        // Outside the lock: dropping them calls back.
        drop(undelivered);
    }

    /// Takes the queued messages.
    pub(crate) fn take(&self) -> Vec<SteerMessage> {
        std::mem::take(&mut self.state().queued)
    }

    /// Woken when a message is queued.
    pub(crate) fn waker(&self) -> &Waker {
        &self.waker
    }

    fn state(&self) -> MutexGuard<'_, SteeringState> {
        // No holder of this lock panics while the state is inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    fn message(text: &str) -> (SteerMessage, Receiver<bool>) {
        let (answer, answered) = channel();
        let answer = Box::new(move |it| answer.send(it).unwrap());
        (SteerMessage::new(text.to_owned(), answer), answered)
    }

    #[test]
    fn answers_each_steer() {
        let steering = Steering::new().unwrap();
        let (early, answered) = message("early");
        steering.send(early);
        assert_eq!(answered.recv(), Ok(false));
        steering.open(true);
        let (first, first_answer) = message("first");
        let (late, late_answer) = message("late");
        steering.send(first);
        steering
            .take()
            .into_iter()
            .for_each(SteerMessage::delivered);
        steering.send(late);
        steering.open(false);
        assert_eq!(
            (first_answer.recv(), late_answer.recv()),
            (Ok(true), Ok(false))
        );
        assert!(first_answer.recv().is_err(), "it is notified once");
    }
}
