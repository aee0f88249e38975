//! Access Control Services: whether a function lets requests of its device, or of what is behind
//! it, reach other devices without passing the IOMMU (PCI Express Base Specification, "Access
//! Control Services").
//!
//! Invariant: what is called isolating here has its controls set, not only offered; a machine that
//! reaches only 256 bytes of configuration space has no such function.

use arch::machine::ConfigSpace;
use arch::{Bdf, Width};

use crate::capability::{ACCESS_CONTROL_SERVICES, extended_capabilities};
use crate::header::Function;

bitflags::bitflags! {
    /// ACS Capability and ACS Control registers; the bits are the same.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Acs: u16 {
        /// ACS Source Validation.
        const SOURCE_VALIDATION = 1;
        /// ACS Translation Blocking: nobody may claim that an address is translated already.
        const TRANSLATION_BLOCKING = 1 << 1;
        /// ACS P2P Request Redirect.
        const REQUEST_REDIRECT = 1 << 2;
        /// ACS P2P Completion Redirect.
        const COMPLETION_REDIRECT = 1 << 3;
        /// ACS Upstream Forwarding.
        const UPSTREAM_FORWARDING = 1 << 4;
        /// ACS P2P Egress Control: lets chosen peers talk.
        const EGRESS_CONTROL = 1 << 5;
        /// ACS Direct Translated P2P: lets translated requests pass.
        const DIRECT_TRANSLATED = 1 << 6;
    }
}

/// What has to be on where the function has it: what it does not have, it does not need.
const WANTED: Acs = Acs::SOURCE_VALIDATION
    .union(Acs::TRANSLATION_BLOCKING)
    .union(Acs::REQUEST_REDIRECT)
    .union(Acs::COMPLETION_REDIRECT)
    .union(Acs::UPSTREAM_FORWARDING);

const CAPABILITY: u16 = 4;
const CONTROL: u16 = 6;

/// The offset of the capability, and the control bits that isolate.
fn wanted(space: &impl ConfigSpace, function: Bdf) -> Option<(u16, Acs)> {
    let mut list = extended_capabilities(space, function);
    let at = list.find(|capability| capability.id == ACCESS_CONTROL_SERVICES)?.offset;
    let offered = space.read(function, at + CAPABILITY, Width::Word) as u16;
    Some((at, Acs::from_bits_truncate(offered) & WANTED))
}

/// Switches isolation on in each of `functions` that has it. To be called once, before
/// [`crate::groups::Groups::new`].
pub fn enable<'a>(space: &mut impl ConfigSpace, functions: impl IntoIterator<Item = &'a Function>) {
    for function in functions {
        if let Some((at, wanted)) = wanted(space, function.bdf) {
            space.write(function.bdf, at + CONTROL, Width::Word, wanted.bits().into());
        }
    }
}

/// Whether `function` has the capability and every control is as [`enable`] sets it.
pub(crate) fn isolates(space: &impl ConfigSpace, function: Bdf) -> bool {
    wanted(space, function).is_some_and(|(at, wanted)| {
        let control = space.read(function, at + CONTROL, Width::Word) as u16;
        Acs::from_bits_truncate(control) == wanted
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeSpace;

    const PORT: Bdf = Bdf::new(0, 3, 0);

    fn port(offered: u16, control: u16) -> FakeSpace {
        let mut space = FakeSpace::default();
        let device = space.device(PORT, 0x060400);
        device.set(0x100, 0x0001_000d);
        device.set(0x104, u32::from(offered) | u32::from(control) << 16);
        device.set_writable(0x104, 0xffff_0000);
        space
    }

    #[test]
    fn a_function_that_offers_isolation_isolates_once_it_is_on() {
        for offered in [0x1f, 0x5f, 0x7f, 0x1d, 0x0c] {
            // What lets peers talk may have been left on.
            let mut space = port(offered, offered & 0x60);
            assert!(!isolates(&space, PORT), "{offered:#x}");
            let function = Function::read(&space, PORT).unwrap();
            enable(&mut space, [&function]);
            assert!(isolates(&space, PORT), "{offered:#x}");
            assert_eq!(space.read(PORT, 0x106, Width::Word), u32::from(offered & 0x1f));
        }
    }

    #[test]
    fn a_function_that_lets_chosen_peers_talk_does_not_isolate() {
        assert!(isolates(&port(0x7f, 0x1f), PORT));
        for control in [0x3f, 0x5f, 0x1b, 0] {
            assert!(!isolates(&port(0x7f, control), PORT), "{control:#x}");
        }
    }

    #[test]
    fn a_function_without_the_capability_is_left_alone() {
        let mut space = FakeSpace::default();
        space.device(PORT, 0x060400).set_writable(0x104, u32::MAX);
        let function = Function::read(&space, PORT).unwrap();
        enable(&mut space, [&function]);
        assert!(!isolates(&space, PORT));
        assert_eq!(space.read(PORT, 0x104, Width::Dword), 0);
    }
}
