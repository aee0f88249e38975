//! Which words of a stack are return addresses.
//!
//! The image has neither frame pointers nor unwind tables: both would cost at each exit, or in memory. So all words are
//! looked at, from the stack pointer up, and one counts that points into the code right behind a call. One that a
//! function has left behind on the stack counts too.

/// The longest call has so many bytes, prefixes apart.
const LONGEST_CALL: usize = 7;

/// Code, by address.
#[derive(Clone, Copy, Debug)]
pub struct Code<'a> {
    /// Address of the first byte.
    pub start: u64,
    /// All of it.
    pub bytes: &'a [u8],
}

impl Code<'_> {
    /// Whether a call stands right before `address`.
    #[must_use]
    pub fn returns_to(&self, address: u64) -> bool {
        let end = address.checked_sub(self.start).and_then(|offset| usize::try_from(offset).ok());
        end.and_then(|end| self.bytes.get(..end)).is_some_and(ends_with_call)
    }
}

/// CALL rel32, or CALL r/m64 in one of its lengths (SDM volume 2, "CALL—Call Procedure").
fn ends_with_call(bytes: &[u8]) -> bool {
    let back = |length: usize| bytes.len().checked_sub(length).and_then(|at| bytes.get(at..));
    if let Some([0xe8, ..]) = back(5) {
        return true;
    }
    (2..=LONGEST_CALL).any(|length| match back(length) {
        Some([0xff, mod_rm, rest @ ..]) => {
            indirect_call_length(*mod_rm, rest.first()) == Some(length)
        }
        _ => false,
    })
}

/// The length of FF /2 with this ModR/M byte.
fn indirect_call_length(mod_rm: u8, sib: Option<&u8>) -> Option<usize> {
    const CALL: u8 = 2;
    if mod_rm >> 3 & 7 != CALL {
        return None;
    }
    let (mode, base) = (mod_rm >> 6, mod_rm & 7);
    if mode == 3 {
        return Some(2);
    }
    let has_sib = base == 4;
    let displacement = match mode {
        0 if base == 5 || has_sib && sib.is_some_and(|sib| sib & 7 == 5) => 4,
        0 => 0,
        1 => 1,
        _ => 4,
    };
    Some(2 + usize::from(has_sib) + displacement)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn returns(bytes: &[u8]) -> bool {
        Code { start: 0x20_0000, bytes }.returns_to(0x20_0000 + bytes.len() as u64)
    }

    #[test]
    fn what_stands_behind_a_call_is_a_return_address() {
        for call in [
            &[0xe8, 1, 2, 3, 4][..],            // call rel32
            &[0xff, 0xd0],                      // call rax
            &[0x41, 0xff, 0xd3],                // call r11
            &[0xff, 0x10],                      // call [rax]
            &[0xff, 0x50, 0x18],                // call [rax + 0x18]
            &[0xff, 0x90, 0, 1, 0, 0],          // call [rax + 0x100]
            &[0xff, 0x15, 0, 1, 0, 0],          // call [rip + 0x100]
            &[0xff, 0x14, 0x24],                // call [rsp]
            &[0xff, 0x54, 0x24, 0x18],          // call [rsp + 0x18]
            &[0xff, 0x94, 0x24, 0, 1, 0, 0],    // call [rsp + 0x100]
            &[0xff, 0x14, 0xc5, 0, 0, 0x20, 0], // call [rax * 8 + 0x200000]
        ] {
            assert!(returns(call), "{call:02x?}");
            assert!(returns(&[&[0x90; 9], call].concat()), "{call:02x?} behind other code");
        }
    }

    #[test]
    fn what_stands_behind_anything_else_is_none() {
        for other in [
            &[][..],
            &[0xe9, 1, 2, 3, 4], // jmp rel32
            &[0xff, 0xe0],       // jmp rax
            &[0xff, 0x50],       // cut off
            &[0xe8, 1, 2, 3],    // cut off
            &[0xff, 0x30, 0x90], // push [rax]
        ] {
            assert!(!returns(other), "{other:02x?}");
        }
        let code = Code { start: 0x20_0000, bytes: &[0xe8, 1, 2, 3, 4, 0x90] };
        assert!(code.returns_to(0x20_0005));
        for outside in [0, 0x1f_ffff, 0x20_0000, 0x20_0006, 0x20_0007, u64::MAX] {
            assert!(!code.returns_to(outside), "{outside:#x}");
        }
    }
}
