//! Where a JSON string ends, and that it is one: the bytes that most of a rollout's time goes into.
//!
//! Every escape is checked, every control character found, every character known to be UTF-8: the verdict is
//! serde_json's. What makes it fast is that nothing is looked at in order. A block of 64 bytes is compared as a
//! whole, in loops over arrays that any build turns into vector instructions, without unsafe. Most blocks show
//! so that nothing in them is needs_slow_path, though one byte in sixteen is a backslash; the few others are looked at
//! through masks of one bit a byte.

use std::ops::Range;

/// How many bytes are looked at at once.
const BLOCK: usize = 64;
/// How many bytes before a block its bytes depend on: a character of four bytes reaches so far back.
const BACK: usize = 3;
/// Strings up to this length are looked at in order. Keys and ids are not longer.
const SHORT: usize = 48;

/// A block and the bytes before it.
type Window = [u8; BACK + BLOCK];

/// The place behind the closing quote of the string whose inside begins at `start`; `None` where it is none.
///
/// As serde_json has it, half a surrogate pair is wrong, though the grammar of JSON would let it pass.
pub(crate) fn end(text: &[u8], start: usize) -> Option<usize> {
    let (mut at, plain) = short_end(text, start);
    if text.get(at) == Some(&b'"') {
        let inside = &text[start..at];
        return (plain || std::str::from_utf8(inside).is_ok()).then_some(at + 1);
    }
    if !plain {
        // Whose characters are still to be looked at.
        at = start;
    }
    let mut before = Before::default();
    loop {
        let edge;
        let window: &Window = match at.checked_sub(BACK).and_then(|from| text.get(from..)) {
            Some(there) if there.len() >= BACK + BLOCK => {
                there[..BACK + BLOCK].try_into().expect("a whole window")
            }
            _ if at >= text.len() => return None,
            _ => {
                edge = window_at_edge(text, at);
                &edge
            }
        };
        let glance = glance(window);
        if glance.needs_slow_path || before.run {
            if let Some(end) = check_block_slow(text, at, window, &mut before)? {
                // Up to three bytes back a character can have begun that is not over.
                let right = !glance.high
                    || std::str::from_utf8(&text[first_of_character(text, at)..end - 1]).is_ok();
                return right.then_some(end);
            }
        } else {
            before.escape = None;
        }
        if glance.high && !characters(window) {
            return None;
        }
        at += BLOCK;
    }
}

/// The first byte from `start` on that has a meaning in a string, or the end of what is short; and are the bytes
/// before it all ASCII?
#[inline(always)]
fn short_end(text: &[u8], start: usize) -> (usize, bool) {
    let (mut at, mut high) = (start, 0);
    while at < start + SHORT
        && let Some(bytes) = text.get(at..at + 8)
    {
        let word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let finds = finds(word);
        if finds != 0 {
            let before = (finds & finds.wrapping_neg()) - 1;
            high |= word & HIGHS & before;
            return (at + finds.trailing_zeros() as usize / 8, high == 0);
        }
        high |= word & HIGHS;
        at += 8;
    }
    let end = plain_end(text, at, start + SHORT);
    (end, high == 0 && text[at..end].is_ascii())
}

/// The block at `at` where the text does not reach so far. Zeros stand for what is not there: they are neither
/// backslashes nor allowed in a string.
#[cold]
#[inline(never)]
fn window_at_edge(text: &[u8], at: usize) -> Window {
    let mut window = [0; BACK + BLOCK];
    let from = at.saturating_sub(BACK);
    let there = &text[from..text.len().min(at + BLOCK)];
    window[from + BACK - at..][..there.len()].copy_from_slice(there);
    window
}

/// What of the blocks so far matters for the next one.
#[derive(Default)]
struct Before {
    /// Does the last byte escape what comes next? `None` where that can be seen by the byte alone.
    escape: Option<bool>,
    /// The last byte is a backslash that does not escape what comes next.
    run: bool,
    /// Where the `u` of the second half of a surrogate pair has to stand.
    half: Option<usize>,
}

/// What can be told of a block without going through it.
struct Glance {
    /// There may be more in it than plain characters and the usual, short escapes.
    needs_slow_path: bool,
    /// It or the bytes before it are not all ASCII.
    high: bool,
}

/// All ones or all zeros: what vector instructions make of a comparison.
#[inline(always)]
fn ones_if(is: bool) -> u8 {
    if is { 0xFF } else { 0 }
}

/// What a byte means depends on the backslashes right before it: after one it is escaped. Two are needs_slow_path.
#[inline(always)]
fn glance(window: &Window) -> Glance {
    const LANES: usize = 16;
    let (mut needs_slow_path, mut high, mut low) = ([0u8; LANES], [0u8; LANES], [0xFFu8; LANES]);
    for row in (BACK..window.len()).step_by(LANES) {
        for lane in 0..LANES {
            let (byte, first) = (window[row + lane], window[row + lane - 1]);
            // A quote is right where it is escaped, these are right anywhere, all others where they are not.
            let usual = ones_if(byte == b'n') | ones_if(byte == b't');
            needs_slow_path[lane] |= (ones_if(first == b'\\') ^ ones_if(byte == b'"')) & !usual;
            high[lane] |= byte;
            low[lane] = low[lane].min(byte);
        }
    }
    for lane in 0..LANES {
        needs_slow_path[lane] |= ones_if(low[lane] < 0x20);
        high[lane] = ones_if(high[lane] >= 0x80);
    }
    let back = window[..BACK].iter().fold(0, |all, byte| all | byte);
    Glance {
        needs_slow_path: needs_slow_path != [0; LANES],
        high: high != [0; LANES] || back >= 0x80,
    }
}

/// A block byte by byte: `Some` with the place behind the closing quote where the string ends in it. `None` is
/// the outer one where something is wrong.
#[cold]
#[inline(never)]
fn check_block_slow(
    text: &[u8],
    at: usize,
    window: &Window,
    before: &mut Before,
) -> Option<Option<usize>> {
    const EVEN: u64 = u64::MAX / 3;
    let block = &window[BACK..];
    let slashes = mask(block, |byte| byte == b'\\');
    let stops = mask(block, |byte| byte == b'"' || byte < 0x20);
    // Which bytes are escaped: in every run of backslashes each second one, and what follows a run of an needs_slow_path
    // length. A run that begins at an needs_slow_path place, added to, carries into the place behind it.
    let escape = u64::from(before.escape.unwrap_or(window[BACK - 1] == b'\\'));
    let slashes = slashes & !escape;
    let follow = slashes << 1 | escape;
    let (sum, carry) = (slashes & !EVEN & !follow).overflowing_add(slashes);
    let escaped = (EVEN ^ (sum << 1)) & follow;
    let stop = (stops & !escaped).trailing_zeros() as usize;
    let inside = 1u64
        .checked_shl(stop as u32)
        .map_or(u64::MAX, |bit| bit - 1);
    let mut left = escaped & inside;
    while left != 0 {
        let place = left.trailing_zeros() as usize;
        left &= left - 1;
        match block[place] {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
            b'u' => match (unit(text, at + place)?, before.half.take()) {
                (0xDC00..=0xDFFF, Some(half)) if half == at + place => {}
                (0xD800..=0xDBFF, None) => before.half = Some(at + place + 6),
                (0xD800..=0xDFFF, _) | (_, Some(_)) => return None,
                _ => {}
            },
            _ => return None,
        }
    }
    if stop < BLOCK {
        return (block[stop] == b'"' && before.half.is_none()).then_some(Some(at + stop + 1));
    }
    before.escape = Some(carry);
    before.run = !carry && block[BLOCK - 1] == b'\\';
    Some(None)
}

/// One bit for each byte of a block.
#[inline(always)]
fn mask(block: &[u8], is: impl Fn(u8) -> bool) -> u64 {
    let mut ones = [0u8; BLOCK];
    for (one, byte) in ones.iter_mut().zip(block) {
        *one = u8::from(is(*byte));
    }
    let mut mask = 0;
    for (place, eight) in ones.chunks_exact(8).enumerate() {
        let eight = u64::from_le_bytes(eight.try_into().expect("eight bytes"));
        // The product gathers the lowest bits of eight bytes in its highest byte, the first one lowest.
        mask |= (eight.wrapping_mul(0x0102_0408_1020_4080) >> 56) << (place * 8);
    }
    mask
}

/// The four digits behind the `u` that stands here.
fn unit(text: &[u8], at: usize) -> Option<u32> {
    let digits = text.get(at + 1..at + 5)?;
    digits.iter().try_fold(0, |unit, digit| {
        Some(unit << 4 | char::from(*digit).to_digit(16)?)
    })
}

/// Are the bytes of a block right as UTF-8, as far as they and those before them tell? What is missing at its
/// end is missed in the next block.
fn characters(window: &Window) -> bool {
    const LANES: usize = 16;
    let mut wrong = [0u8; LANES];
    for row in (BACK..window.len()).step_by(LANES) {
        for (lane, wrong) in wrong.iter_mut().enumerate() {
            let at = row + lane;
            let (byte, first, second, third) =
                (window[at], window[at - 1], window[at - 2], window[at - 3]);
            let continues = ones_if(byte & 0xC0 == 0x80);
            // Bytes of which two, three and four byte characters begin.
            let has_to = ones_if(first >= 0xC0) | ones_if(second >= 0xE0) | ones_if(third >= 0xF0);
            // Longer than needed, a surrogate, beyond the last character.
            let never = ones_if(byte & 0xFE == 0xC0) | ones_if(byte >= 0xF5);
            let outside = (ones_if(first == 0xE0) & ones_if(byte < 0xA0))
                | (ones_if(first == 0xED) & ones_if(byte >= 0xA0))
                | (ones_if(first == 0xF0) & ones_if(byte < 0x90))
                | (ones_if(first == 0xF4) & ones_if(byte >= 0x90));
            *wrong |= (continues ^ has_to) | never | outside;
        }
    }
    wrong == [0; LANES]
}

/// Where the character begins that reaches up to `at` or over it.
fn first_of_character(text: &[u8], at: usize) -> usize {
    let back: Range<usize> = at.saturating_sub(BACK)..at;
    back.rev()
        .find(|place| text[*place] & 0xC0 != 0x80)
        .unwrap_or(at)
}

const ONES: u64 = u64::MAX / 255;
const HIGHS: u64 = ONES << 7;

/// The lowest bit set is the top bit of the first of eight bytes that has a meaning in a string; zero where none
/// has.
#[inline(always)]
fn finds(word: u64) -> u64 {
    // The usual trick: a byte below n borrows from its top bit when n is taken away from it. A borrow can spoil
    // only the bytes above one that is a true find, and the lowest find is the one that is used.
    let quote = word ^ (ONES * b'"' as u64);
    let slash = word ^ (ONES * b'\\' as u64);
    let finds = (word.wrapping_sub(ONES * 0x20) & !word)
        | (quote.wrapping_sub(ONES) & !quote)
        | (slash.wrapping_sub(ONES) & !slash);
    finds & HIGHS
}

/// The first byte from `at` on that has a meaning in a string (a quote, a backslash, a control character), or
/// `end`, or the end of the text.
#[inline]
pub(crate) fn plain_end(text: &[u8], mut at: usize, end: usize) -> usize {
    while at + 8 <= end
        && let Some(bytes) = text.get(at..at + 8)
    {
        let word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let finds = finds(word);
        if finds != 0 {
            return at + finds.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while let Some(byte) = text.get(at)
        && at < end
        && !matches!(byte, b'"' | b'\\' | ..0x20)
    {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    /// serde_json is the judge of what is a string.
    fn check(inside: &[u8]) {
        let text = [b"\"", inside, b"\""].concat();
        let judge = serde_json::from_slice::<String>(&text).is_ok();
        // With nothing behind it, and with more than is looked at at once.
        for behind in [0, 5, 200] {
            let text = [&text, &b" \\\"\xFF,"[..behind.min(5)], &vec![b' '; behind]].concat();
            let end = end(&text, 1);
            assert_eq!(
                end == Some(inside.len() + 2),
                judge,
                "{:?} and {behind} bytes: {end:?}",
                String::from_utf8_lossy(inside),
            );
        }
    }

    #[test]
    fn accepts_strings_that_serde_json_accepts() {
        const PARTS: &[&[u8]] = &[
            b"\\\\",
            b"\\\"",
            b"\\n",
            b"\\/",
            b"\\u001b",
            b"\\ud83c\\udf89",
            b"a",
            b"sixteen letters.",
            "\u{e9}".as_bytes(),
            "\u{ffff}".as_bytes(),
            "\u{1f389}".as_bytes(),
        ];
        const WRONG: &[&[u8]] = &[
            b"\\",
            b"\\x",
            b"\\u12",
            b"\\ud83c",
            b"\\udf89",
            b"\\ud83c\\u0041",
            b"\"",
            b"\n",
            b"\0",
            b"\x80",
            b"\xC3",
            b"\xC0\x80",
            b"\xE0\x80\x80",
            b"\xED\xA0\x80",
            b"\xE2\x82",
            b"\xF0\x80\x80\x80",
            b"\xF0\x9F\x8E",
            b"\xF4\x90\x80\x80",
            b"\xF5\x80\x80\x80",
            b"\xFF",
        ];
        // Every part and every wrong one at every place of a block, alone and in rows.
        for part in PARTS.iter().chain(WRONG) {
            for times in [1, 2, 3, 70] {
                for before in 0..2 * BLOCK + 3 {
                    let row = part.repeat(times);
                    let before = vec![b'a'; before];
                    // With a whole block behind them, which the end of the string is not in.
                    let behind = [b'b'; BLOCK];
                    check(&[&before, &row[..]].concat());
                    check(&[&before, &row[..], &behind].concat());
                    check(&[&before, &b"\\\\"[..], &row[..], &behind].concat());
                }
            }
        }
        // Mixed without a plan, every third one with something wrong in it. A fixed sequence that looks random.
        let mut state = 1u64;
        let mut roll = |sides: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize % sides
        };
        for _ in 0..4000 {
            let mut inside = Vec::new();
            let (length, few) = (roll(120), 1 + roll(PARTS.len()));
            let wrong = (roll(3) == 0).then(|| roll(length + 1));
            for at in 0..length {
                if wrong == Some(at) {
                    inside.extend_from_slice(WRONG[roll(WRONG.len())]);
                }
                inside.extend_from_slice(PARTS[roll(few)]);
            }
            check(&inside);
        }
    }
}
