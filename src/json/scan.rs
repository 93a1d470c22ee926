//! Finds the end of a JSON string and validates the string; reading a rollout spends most of its time here.
//!
//! Every escape, control character and UTF-8 sequence is checked, with serde_json's result. It is fast: blocks of 64
//! bytes are compared as a whole, in loops over arrays that the compiler turns into vector instructions without
//! `unsafe`. Most blocks need nothing else, though one byte in sixteen is a backslash; the others take a slow path
//! that works on masks of one bit a byte.

use std::ops::Range;

/// The block size in bytes.
const BLOCK: usize = 64;
/// How many bytes before a block its validity depends on: a UTF-8 sequence has up to four.
const BACK: usize = 3;
/// Strings up to this many bytes are scanned eight bytes at a time. Keys and ids are not longer.
const SHORT: usize = 48;

/// A block and the bytes before it.
type Window = [u8; BACK + BLOCK];

/// The offset behind the closing quote of the string whose contents begin at `start`; `None` where it is invalid.
///
/// As in serde_json, an unpaired surrogate is invalid, although the grammar of JSON allows it.
pub(crate) fn end(text: &[u8], start: usize) -> Option<usize> {
    let (mut at, plain) = short_end(text, start);
    if text.get(at) == Some(&b'"') {
        let inside = &text[start..at];
        return (plain || std::str::from_utf8(inside).is_ok()).then_some(at + 1);
    }
    if !plain {
        // The UTF-8 of these bytes is still unchecked.
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
                // A sequence that is incomplete at the end of the last block begins up to three bytes before this one.
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

/// The offset of the first special byte from `start` on, but at most [`SHORT`] bytes further; and whether the bytes
/// before it are all ASCII.
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

/// The block at `at`, near an end of the text. Missing bytes are 0, which is neither a backslash nor allowed in a
/// string.
#[cold]
#[inline(never)]
fn window_at_edge(text: &[u8], at: usize) -> Window {
    let mut window = [0; BACK + BLOCK];
    let from = at.saturating_sub(BACK);
    let there = &text[from..text.len().min(at + BLOCK)];
    window[from + BACK - at..][..there.len()].copy_from_slice(there);
    window
}

/// State carried from one block to the next.
#[derive(Default)]
struct Before {
    /// Whether the last byte escapes the next one; `None` where the byte alone tells.
    escape: Option<bool>,
    /// The last byte is a backslash that does not escape the next byte.
    run: bool,
    /// Where the `u` of a low surrogate's escape must be.
    half: Option<usize>,
}

/// The result of the comparison of a whole block.
struct Glance {
    /// The block may have more than plain characters and the common two-byte escapes.
    needs_slow_path: bool,
    /// The block or the bytes before it are not all ASCII.
    high: bool,
}

/// All ones or all zeros, as a vector comparison yields.
#[inline(always)]
fn ones_if(is: bool) -> u8 {
    if is { 0xFF } else { 0 }
}

/// Classifies a block by pairs of bytes: a byte is escaped where a backslash precedes it. Two backslashes in a row need
/// the slow path.
#[inline(always)]
fn glance(window: &Window) -> Glance {
    const LANES: usize = 16;
    let (mut needs_slow_path, mut high, mut low) = ([0u8; LANES], [0u8; LANES], [0xFFu8; LANES]);
    for row in (BACK..window.len()).step_by(LANES) {
        for lane in 0..LANES {
            let (byte, first) = (window[row + lane], window[row + lane - 1]);
            // `n` and `t` are valid escaped or not; a quote must be escaped, and any other byte must not be.
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

/// Checks a block byte by byte. `None`: invalid; `Some(None)`: the string continues behind the block;
/// `Some(Some(end))`: the offset behind the closing quote.
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
    // Escaped is every second byte of a run of backslashes, and the byte behind a run of odd length. Adding the run
    // to a bit at its odd start carries into the bit behind its end.
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
        // The multiplication gathers the lowest bits of eight bytes in the highest byte, the first byte's lowest.
        mask |= (eight.wrapping_mul(0x0102_0408_1020_4080) >> 56) << (place * 8);
    }
    mask
}

/// The UTF-16 unit of an escape whose `u` is at `at`.
fn unit(text: &[u8], at: usize) -> Option<u32> {
    let digits = text.get(at + 1..at + 5)?;
    digits.iter().try_fold(0, |unit, digit| {
        Some(unit << 4 | char::from(*digit).to_digit(16)?)
    })
}

/// Whether a block is valid UTF-8 as far as it and the bytes before it show. A sequence that is incomplete at its end
/// is found in the next block.
fn characters(window: &Window) -> bool {
    const LANES: usize = 16;
    let mut wrong = [0u8; LANES];
    for row in (BACK..window.len()).step_by(LANES) {
        for (lane, wrong) in wrong.iter_mut().enumerate() {
            let at = row + lane;
            let (byte, first, second, third) =
                (window[at], window[at - 1], window[at - 2], window[at - 3]);
            let continues = ones_if(byte & 0xC0 == 0x80);
            // Lead bytes of sequences of two, three and four bytes.
            let has_to = ones_if(first >= 0xC0) | ones_if(second >= 0xE0) | ones_if(third >= 0xF0);
            // Overlong forms, surrogates, and values above U+10FFFF.
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

/// The start of the UTF-8 sequence that reaches up to `at` or over it.
fn first_of_character(text: &[u8], at: usize) -> usize {
    let back: Range<usize> = at.saturating_sub(BACK)..at;
    back.rev()
        .find(|place| text[*place] & 0xC0 != 0x80)
        .unwrap_or(at)
}

const ONES: u64 = u64::MAX / 255;
const HIGHS: u64 = ONES << 7;

/// The lowest set bit is the top bit of the first special byte of eight; zero where there is none.
#[inline(always)]
fn finds(word: u64) -> u64 {
    // A byte below n borrows from its top bit when n is subtracted. A borrow can falsify only bytes above a true
    // find, and the lowest find is the one that is used.
    let quote = word ^ (ONES * b'"' as u64);
    let slash = word ^ (ONES * b'\\' as u64);
    let finds = (word.wrapping_sub(ONES * 0x20) & !word)
        | (quote.wrapping_sub(ONES) & !quote)
        | (slash.wrapping_sub(ONES) & !slash);
    finds & HIGHS
}

/// The offset of the first special byte from `at` on (a quote, a backslash, a control character), or `end`, or the end
/// of the text.
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

    /// `serde_json` decides what is a string.
    fn check(inside: &[u8]) {
        let text = [b"\"", inside, b"\""].concat();
        let expected = serde_json::from_slice::<String>(&text).is_ok();
        // At the end of the text, and with more than a block behind it.
        for behind in [0, 5, 200] {
            let text = [&text, &b" \\\"\xFF,"[..behind.min(5)], &vec![b' '; behind]].concat();
            let end = end(&text, 1);
            assert_eq!(
                end == Some(inside.len() + 2),
                expected,
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
        // Every valid and invalid part at every place of a block, alone and repeated.
        for part in PARTS.iter().chain(WRONG) {
            for times in [1, 2, 3, 70] {
                for before in 0..2 * BLOCK + 3 {
                    let row = part.repeat(times);
                    let before = vec![b'a'; before];
                    // With a whole block behind them, so that the string does not end in theirs.
                    let behind = [b'b'; BLOCK];
                    check(&[&before, &row[..]].concat());
                    check(&[&before, &row[..], &behind].concat());
                    check(&[&before, &b"\\\\"[..], &row[..], &behind].concat());
                }
            }
        }
        // Pseudo-random mixtures, a third of them with an invalid part.
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
