//! The assistant's messages of a turn, emitted as they are written and corrected where they turn out otherwise.
//!
//! A delta is emitted at once, white space at the ends of a message aside, which the completed item has not (measured on
//! 0.135.0 to 0.169.0). An item that is completed has the last word: what is missing is emitted, and where it says
//! something else the emitted message is discarded by its number. A message that another one follows without
//! having been completed was broken off: codex asks the model again after a dropped stream, and 0.169 cuts a message off
//! for what the user says meanwhile. Where the new one begins as the old one did it is emitted as the same message.

use crate::backend::emitter::Emitter;

/// What is known of the message that is being written.
#[derive(Debug, Default)]
pub(super) struct Texts {
    /// Its item.
    item: Option<String>,
    /// What has come of it.
    received: String,
    /// Up to where that was emitted, in bytes.
    told_to: usize,
    /// What was emitted of a message that was broken off, while this one may go on as it did.
    broken_off: String,
}

impl Texts {
    /// Is the item of the next delta a new one, before which something else may have to be emitted?
    pub(super) fn begins(&self, item: &str) -> bool {
        self.item.as_deref() != Some(item)
    }

    /// What was emitted of the message that is not complete.
    fn told(&self) -> &str {
        match self.broken_off.as_str() {
            "" => self.received[..self.told_to].trim_start(),
            told => told,
        }
    }

    /// More of the message of `item`.
    pub(super) fn delta(&mut self, item: &str, text: &str, emitter: &mut Emitter<'_>) {
        if self.begins(item) {
            *self = Texts {
                item: Some(item.to_owned()),
                broken_off: self.told().to_owned(),
                ..Texts::default()
            };
        }
        self.received.push_str(text);
        let end = self.received.trim_end().len();
        let start = match self.told_to {
            0 => end - self.received[..end].trim_start().len(),
            told_to => told_to,
        };
        let more = &self.received[start..end];
        if !self.broken_off.is_empty() {
            if self.broken_off.starts_with(more) {
                // It may yet say the same.
                return;
            }
            tell(&std::mem::take(&mut self.broken_off), more, emitter);
        } else if more.is_empty() {
            return;
        } else if self.told_to == 0 {
            emitter.begin_text(more);
        } else {
            emitter.more_text(more);
        }
        self.told_to = end;
    }

    /// The message of `item` is complete, and this is the whole of it; empty where codex has nothing to add. Gives what
    /// it says.
    pub(super) fn complete(&mut self, item: &str, text: &str, emitter: &mut Emitter<'_>) -> String {
        let told = self.told().to_owned();
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
            tell(&told, &text, emitter);
            emitter.end_text();
        }
        text
    }

    /// The turn ends without the rest of a message that is begun.
    pub(super) fn abandon(&mut self, emitter: &mut Emitter<'_>) {
        if !self.told().is_empty() {
            emitter.end_text();
        }
        *self = Texts::default();
    }
}

/// Emits what of `text` was not emitted yet; all of it, as another message, where something else was.
fn tell(told: &str, text: &str, emitter: &mut Emitter<'_>) {
    match text.strip_prefix(told) {
        Some("") => {}
        Some(_) if told.is_empty() => emitter.begin_text(text),
        Some(rest) => emitter.more_text(rest),
        None => {
            emitter.discard_text("codex has the model write the message anew");
            emitter.begin_text(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::emitter::{EventSink, Level};
    use crate::canonical::TurnEvent;

    /// What is emitted, a piece of text with its message's number before it.
    #[derive(Default)]
    struct Told(Vec<String>);

    impl EventSink for Told {
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
    fn told(steps: &[(&str, &str)]) -> Vec<String> {
        let mut sink = Told::default();
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
            told(&[
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
            told(&[("a", "A B C "), ("a!", "A B C D")]),
            ["0:A B C", "0: D"]
        );
        assert_eq!(
            told(&[("a", "A B C "), ("a!", "A B X"), ("b!", "Y")]),
            ["0:A B C", "discard 0", "1:\n\nA B X", "2:\n\nY"]
        );
    }

    #[test]
    fn continues_dropped_message_with_common_beginning() {
        assert_eq!(
            told(&[("a", "A B"), ("b", "A"), ("b", " B C"), ("b!", "A B C D")]),
            ["0:A B", "0: C", "0: D"]
        );
        assert_eq!(
            told(&[("a", "A B"), ("b", "A"), ("b", " X"), ("b!", "A X")]),
            ["0:A B", "discard 0", "1:\n\nA X"]
        );
        assert_eq!(
            told(&[("a", "A B"), ("b", "A"), ("b!", "A")]),
            ["0:A B", "discard 0", "1:\n\nA"]
        );
        assert_eq!(told(&[("a", "A B"), ("b!", "A B")]), ["0:A B"]);
    }
}
