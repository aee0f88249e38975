//! Kinds of cores on hybrid CPUs (SDM, CPUID leaf 0x1A "Native Model ID Enumeration Leaf").

use core::fmt;

use crate::Cpuid;

/// The kind of the CPU that calls, as its number in the leaf; 0 where it does not say.
#[must_use]
pub fn kind(cpuid: impl Cpuid) -> u8 {
    const LEAF: u32 = 0x1a;
    const HYBRID: u32 = 1 << 15;
    let most = cpuid(0, 0).eax;
    let hybrid = most >= LEAF && cpuid(7, 0).edx & HYBRID != 0;
    if hybrid { cpuid(LEAF, 0).eax.to_be_bytes()[0] } else { 0 }
}

/// How many CPUs there are of each kind: of CPUs with these kinds.
#[derive(Clone, Copy, Debug)]
pub struct Kinds<'a>(pub &'a [u8]);

impl fmt::Display for Kinds<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CORE: u8 = 0x40;
        const ATOM: u8 = 0x20;
        let mut comma = "";
        for kind in (0..=u8::MAX).rev() {
            let count = self.0.iter().filter(|it| **it == kind).count();
            if count > 0 {
                match kind {
                    CORE => write!(f, "{comma}{count} performance (Core)")?,
                    ATOM => write!(f, "{comma}{count} efficient (Atom)")?,
                    0 => write!(f, "{comma}{count} that do not say")?,
                    _ => write!(f, "{comma}{count} of kind {kind:#x}")?,
                }
                comma = ", ";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::machine::CpuidResult;

    fn cpu(most: u32, hybrid: u32, model: u32) -> impl Cpuid {
        move |leaf, _| match leaf {
            0 => CpuidResult { eax: most, ..CpuidResult::default() },
            7 => CpuidResult { edx: hybrid << 15, ..CpuidResult::default() },
            0x1a => CpuidResult { eax: model, ..CpuidResult::default() },
            _ => CpuidResult::default(),
        }
    }

    #[test]
    fn only_a_hybrid_says_its_kind() {
        assert_eq!(kind(cpu(0x20, 1, 0x4000_0001)), 0x40);
        assert_eq!(kind(cpu(0x20, 1, 0x2000_0001)), 0x20);
        assert_eq!(kind(cpu(0x20, 0, 0x4000_0001)), 0, "all cores are alike");
        assert_eq!(kind(cpu(0x19, 1, 0x4000_0001)), 0, "it has no such leaf");
    }

    #[test]
    fn the_kinds_are_counted() {
        let text = |kinds: &[u8]| Kinds(kinds).to_string();
        assert_eq!(
            text(&[0x40, 0x20, 0x40, 0x20, 0x20]),
            "2 performance (Core), 3 efficient (Atom)"
        );
        assert_eq!(
            text(&[0x40, 0x10, 0]),
            "1 performance (Core), 1 of kind 0x10, 1 that do not say"
        );
    }
}
