//! Streams the assistant's messages, and corrects them where the completed item differs.
//!
//! A delta is emitted at once, except for whitespace at the ends of a message, which completed items do not have
//! (measured on 0.135.0 to 0.169.0). The completed item takes precedence: missing text is emitted, and if it differs
//! the streamed message is discarded by its number. A message that is followed by another one without having been
//! completed was aborted: codex repeats the request after a dropped stream, and 0.169 aborts a message when the turn is
//! steered. If the new message begins with the same text it continues the old one.

use crate::backend::emitter::Emitter;

/// The state of the message that is being streamed.
#[derive(Debug, Default)]
pub(super) struct Texts {
    /// The id of its item.
    item: Option<String>,
    /// The text received so far.
    received: String,
    /// How many bytes of it are done: emitted, or whitespace before that.
    emitted_to: usize,
    /// The emitted text of an aborted message, while the current one may still continue it.
    aborted: String,
}

impl Texts {
    /// Whether a delta of `item` would begin a new message; events before it have to be emitted first.
    pub(super) fn begins(&self, item: &str) -> bool {
        self.item.as_deref() != Some(item)
    }

    /// The emitted text of the incomplete message.
    fn emitted(&self) -> &str {
        match self.aborted.as_str() {
            "" => self.received[..self.emitted_to].trim_start(),
            emitted => emitted,
        }
    }

    /// Receives more text of the message of `item`.
    pub(super) fn delta(&mut self, item: &str, text: &str, emitter: &mut Emitter<'_>) {
        if self.begins(item) {
            *self = Texts {
                item: Some(item.to_owned()),
                aborted: self.emitted().to_owned(),
                ..Texts::default()
            };
        }
        self.received.push_str(text);
        let end = self.received.trim_end().len();
        let start = match self.emitted_to {
            0 => end - self.received[..end].trim_start().len(),
            emitted_to => emitted_to,
        };
        let more = &self.received[start..end];
        if !self.aborted.is_empty() {
            if self.aborted.starts_with(more) {
                // It may still repeat the aborted message.
                return;
            }
            emit_rest(&std::mem::take(&mut self.aborted), more, emitter);
        } else if more.is_empty() {
            return;
        } else if self.emitted_to == 0 {
            emitter.begin_text(more);
        } else {
            emitter.continue_text(more);
        }
        self.emitted_to = end;
    }

    /// Completes the message of `item` with its full text, which is empty where codex does not repeat it. Returns the
    /// full text.
    pub(super) fn complete(&mut self, item: &str, text: &str, emitter: &mut Emitter<'_>) -> String {
        let emitted = self.emitted().to_owned();
        let received = match self.begins(item) {
            true => "",
            false => self.received.trim(),
        };
        let text = match text.trim() {
            "" => received,
            text => text,
        };
        let text = text.to_owned();
        *self = Texts::default();
        if !text.is_empty() {
            emit_rest(&emitted, &text, emitter);
            emitter.end_text();
        }
        text
    }

    /// Ends an incomplete message: the turn has ended.
    pub(super) fn abandon(&mut self, emitter: &mut Emitter<'_>) {
        if !self.emitted().is_empty() {
            emitter.end_text();
        }
        *self = Texts::default();
    }
}

/// Emits the rest of `text` behind `emitted`; all of it, as a new message, where it does not begin with that.
fn emit_rest(emitted: &str, text: &str, emitter: &mut Emitter<'_>) {
    match text.strip_prefix(emitted) {
        Some("") => {}
        Some(_) if emitted.is_empty() => emitter.begin_text(text),
        Some(rest) => emitter.continue_text(rest),
        None => {
            emitter.discard_text("codex makes the model generate the message again");
            emitter.begin_text(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::emitter::{EventSink, Level};
    use crate::canonical::TurnEvent;

    /// Records what is emitted; texts with the number of their message.
    #[derive(Default)]
    struct RecordingSink(Vec<String>);

    impl EventSink for RecordingSink {
        fn event(&mut self, event: &TurnEvent<'_>) {
            match event {
                TurnEvent::TextDelta { text, message } => self.0.push(format!("{message}:{text}")),
                TurnEvent::Status {
                    discarded_message, ..
                } => self
                    .0
                    .push(format!("discard {}", discarded_message.unwrap())),
                _ => {}
            }
        }
        fn raw_event(&mut self, _: &[u8]) {}
        fn log(&mut self, _: Level, _: &str) {}
        fn flush(&mut self) {}
    }

    /// `item text` is a delta, `item! text` the completed item.
    fn stream(steps: &[(&str, &str)]) -> Vec<String> {
        let mut sink = RecordingSink::default();
        let mut emitter = Emitter::new(&mut sink);
        let mut texts = Texts::default();
        for (item, text) in steps {
            match item.strip_suffix('!') {
                Some(item) => drop(texts.complete(item, text, &mut emitter)),
                None => texts.delta(item, text, &mut emitter),
            }
        }
        sink.0
    }

    #[test]
    fn emits_deltas_once_and_trimmed() {
        assert_eq!(
            stream(&[
                ("a", "\n\nI "),
                ("a", "will"),
                ("a", " \n"),
                ("a", "do.\n"),
                ("a!", "I will \ndo."),
                ("b!", "Done."),
                ("c", "And"),
                ("c!", ""),
            ]),
            ["0:I", "0: will", "0: \ndo.", "1:\n\nDone.", "2:\n\nAnd"]
        );
    }

    #[test]
    fn completed_item_overrides_deltas() {
        assert_eq!(
            stream(&[("a", "A B C "), ("a!", "A B C D")]),
            ["0:A B C", "0: D"]
        );
        assert_eq!(
            stream(&[("a", "A B C "), ("a!", "A B X"), ("b!", "Y")]),
            ["0:A B C", "discard 0", "1:\n\nA B X", "2:\n\nY"]
        );
    }

    #[test]
    fn continues_dropped_message_with_common_beginning() {
        assert_eq!(
            stream(&[("a", "A B"), ("b", "A"), ("b", " B C"), ("b!", "A B C D")]),
            ["0:A B", "0: C", "0: D"]
        );
        assert_eq!(
            stream(&[("a", "A B"), ("b", "A"), ("b", " X"), ("b!", "A X")]),
            ["0:A B", "discard 0", "1:\n\nA X"]
        );
        assert_eq!(
            stream(&[("a", "A B"), ("b", "A"), ("b!", "A")]),
            ["0:A B", "discard 0", "1:\n\nA"]
        );
        assert_eq!(stream(&[("a", "A B"), ("b!", "A B")]), ["0:A B"]);
    }
}
