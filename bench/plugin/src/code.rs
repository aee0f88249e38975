//! Which instructions mean something to the count, by their bytes. Pure.

/// The last three bytes of a marker's displacement.
const MAGIC: [u8; 3] = *b"xen";
/// Set in a marker's first byte of displacement: the window closes.
const CLOSE: u8 = 0x80;

/// What an instruction is to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// One to be counted and no more.
    Plain,
    /// VMRUN: what comes next is the guest's.
    Vmrun,
    /// HLT.
    Halt,
    /// The program opens this window.
    Open(u8),
    /// The program closes this window.
    Close(u8),
}

/// What the instruction with these bytes is.
///
/// A marker is a NOP that no compiler makes, `nop dword ptr [rax + displacement]`: it costs one
/// instruction, on every machine and at every privilege.
pub(crate) const fn kind(bytes: &[u8]) -> Kind {
    match *bytes {
        [0x0f, 0x01, 0xd8] => Kind::Vmrun,
        [0xf4] => Kind::Halt,
        [0x0f, 0x1f, 0x80, window, a, b, c] if a == MAGIC[0] && b == MAGIC[1] && c == MAGIC[2] => {
            if window & CLOSE == 0 {
                Kind::Open(window)
            } else {
                Kind::Close(window & !CLOSE)
            }
        }
        _ => Kind::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_names_its_window_and_whether_it_closes() {
        assert_eq!(kind(b"\x0f\x1f\x80\x05xen"), Kind::Open(5));
        assert_eq!(kind(b"\x0f\x1f\x80\x85xen"), Kind::Close(5));
    }

    #[test]
    fn nops_of_compilers_are_no_markers() {
        assert_eq!(kind(&[0x0f, 0x1f, 0x80, 0, 0, 0, 0]), Kind::Plain);
        assert_eq!(kind(&[0x0f, 0x1f, 0x00]), Kind::Plain);
        assert_eq!(kind(&[]), Kind::Plain);
    }

    #[test]
    fn vmrun_and_hlt_are_known() {
        assert_eq!(kind(&[0x0f, 0x01, 0xd8]), Kind::Vmrun);
        assert_eq!(kind(&[0x0f, 0x01, 0xd9]), Kind::Plain, "VMMCALL");
        assert_eq!(kind(&[0xf4]), Kind::Halt);
    }
}
