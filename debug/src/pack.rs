//! A page, packed: the LZ4 block format (`lz4_Block_format.md`), greedily, in one pass and without memory of its own but
//! a table of 1,024 places.

use alloc::vec::Vec;

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// The shortest match, and what the format wants plain at the end: no match begins in the last twelve bytes, and the last
/// five are literals.
const MIN_MATCH: usize = 4;
const NO_MATCH_WITHIN: usize = 12;
const LAST_LITERALS: usize = 5;
const PLACES: usize = 1 << 10;

/// Packs a page behind what `to` has.
pub fn pack(page: &[u8; PAGE], to: &mut Vec<u8>) {
    // Where four bytes with this hash were last.
    let mut last = [0_u16; PLACES];
    let (mut at, mut plain) = (0, 0);
    while at + NO_MATCH_WITHIN < PAGE {
        let Some(four) = four(page, at) else { break };
        let hash = (four.wrapping_mul(0x9e37_79b1) >> 22) as usize;
        let Some(place) = last.get_mut(hash) else { break };
        let before = usize::from(core::mem::replace(place, at as u16));
        if before >= at || self::four(page, before) != Some(four) {
            at += 1;
            continue;
        }
        let length = MIN_MATCH + common(page, before + MIN_MATCH, at + MIN_MATCH);
        sequence(page.get(plain..at).unwrap_or_default(), Some((at - before, length)), to);
        at += length;
        plain = at;
    }
    sequence(page.get(plain..).unwrap_or_default(), None, to);
}

fn four(page: &[u8; PAGE], at: usize) -> Option<u32> {
    page.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

/// So many bytes are the same at both places.
fn common(page: &[u8; PAGE], one: usize, other: usize) -> usize {
    let end = PAGE - LAST_LITERALS;
    let rest = |from: usize| page.get(from..end).unwrap_or_default();
    rest(one).iter().zip(rest(other)).take_while(|(one, other)| one == other).count()
}

/// Literals, and a match of so many bytes so far back.
fn sequence(literals: &[u8], found: Option<(usize, usize)>, to: &mut Vec<u8>) {
    let more = found.map_or(0, |(_, length)| length - MIN_MATCH);
    to.push((literals.len().min(15) << 4 | more.min(15)) as u8);
    length(literals.len(), to);
    to.extend_from_slice(literals);
    if let Some((back, _)) = found {
        to.extend_from_slice(&(back as u16).to_le_bytes());
        length(more, to);
    }
}

/// What of a length does not fit in four bits.
fn length(all: usize, to: &mut Vec<u8>) {
    let Some(mut rest) = all.checked_sub(15) else { return };
    while rest >= 255 {
        to.push(255);
        rest -= 255;
    }
    to.push(rest as u8);
}

/// The page that was packed; `None` where it is none.
#[must_use]
pub fn unpack(mut from: &[u8]) -> Option<Vec<u8>> {
    let mut page = Vec::with_capacity(PAGE);
    loop {
        let (token, rest) = from.split_first()?;
        from = rest;
        let literals = unpack_length(usize::from(token >> 4), &mut from)?;
        page.extend_from_slice(from.get(..literals)?);
        from = from.get(literals..)?;
        if from.is_empty() {
            return (page.len() == PAGE).then_some(page);
        }
        let (back, rest) = from.split_first_chunk()?;
        from = rest;
        let back = usize::from(u16::from_le_bytes(*back));
        let length = MIN_MATCH + unpack_length(usize::from(token & 15), &mut from)?;
        if back == 0 || page.len() + length > PAGE {
            return None;
        }
        for _ in 0..length {
            page.push(*page.get(page.len().checked_sub(back)?)?);
        }
    }
}

fn unpack_length(four_bits: usize, from: &mut &[u8]) -> Option<usize> {
    if four_bits < 15 {
        return Some(four_bits);
    }
    let mut length = four_bits;
    loop {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        length += usize::from(*byte);
        if *byte != 255 {
            return Some(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(page: &[u8; PAGE]) -> Vec<u8> {
        let mut to = Vec::new();
        pack(page, &mut to);
        to
    }

    #[test]
    fn what_repeats_gets_short_and_nothing_gets_much_longer() {
        assert!(packed(&[7; PAGE]).len() < 32);
        let words = core::array::from_fn(|at| b"nested page table "[at % 18]);
        assert!(packed(&words).len() < 64);
        let mut seed = 1_u32;
        let noise = core::array::from_fn(|_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as u8
        });
        let packed = packed(&noise);
        assert!(packed.len() < PAGE + 32, "{}", packed.len());
        assert_eq!(unpack(&packed).unwrap(), noise);
    }

    proptest! {
        #[test]
        fn a_page_comes_back_as_it_was(
            pieces in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 1..40), 1..60_usize), 1..40
            ),
        ) {
            let bytes: Vec<u8> = pieces.iter().flat_map(|(piece, times)| piece.repeat(*times)).collect();
            let page = core::array::from_fn(|at| bytes[at % bytes.len()]);
            prop_assert_eq!(unpack(&packed(&page)).unwrap(), page);
        }

        #[test]
        fn garbage_is_no_page_or_one_of_the_right_length(bytes: Vec<u8>) {
            prop_assert!(unpack(&bytes).is_none_or(|page| page.len() == PAGE));
        }
    }
}
