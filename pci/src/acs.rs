//! Access Control Services: whether requests of a function's device, or of devices behind
//! it, can reach other devices without passing the IOMMU (PCI Express Base Specification, "Access
//! Control Services").
//!
//! Two kinds of Intel functions are exceptions, by name: [`has_wide_registers`] and
//! [`never_reaches_peers`].
//!
//! Invariant: a function counts as isolating only if its controls are set, not merely offered. On a machine that
//! reaches only 256 bytes of configuration space, no function does.

use arch::Width;
use arch::machine::ConfigSpace;

use crate::capability::{ACCESS_CONTROL_SERVICES, PCI_EXPRESS, extended_capabilities, find};
use crate::header::Function;

const INTEL: u16 = 0x8086;

bitflags::bitflags! {
    /// ACS Capability and ACS Control registers; the bits are the same.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Acs: u16 {
        /// ACS Source Validation.
        const SOURCE_VALIDATION = 1;
        /// ACS Translation Blocking: blocks requests that claim to be translated already.
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

/// The controls that must be on if the function has them; it does not need those that it lacks.
const WANTED: Acs = Acs::SOURCE_VALIDATION
    .union(Acs::TRANSLATION_BLOCKING)
    .union(Acs::REQUEST_REDIRECT)
    .union(Acs::COMPLETION_REDIRECT)
    .union(Acs::UPSTREAM_FORWARDING);

/// The registers of one function, and the control bits that isolate.
struct Registers {
    control: u16,
    width: Width,
    wanted: Acs,
}

fn registers(space: &impl ConfigSpace, function: &Function) -> Option<Registers> {
    let mut list = extended_capabilities(space, function.bdf);
    let at = list.find(|capability| capability.id == ACCESS_CONTROL_SERVICES)?.offset;
    let (distance, width) =
        if has_wide_registers(function) { (8, Width::Dword) } else { (6, Width::Word) };
    let offered = space.read(function.bdf, at + 4, width) as u16;
    let wanted = Acs::from_bits_truncate(offered) & WANTED;
    Some(Registers { control: at + distance, width, wanted })
}

/// Root ports of Intel's 100- and 200-series chipsets and of the mobile ones of their time, whose
/// capability and control registers are 32 bits wide, so that control is at 8 and not at 6 (100-Series
/// PCH data sheet, "ACS Capability Register" and "ACS Control Register"). The bits are as everywhere.
const fn has_wide_registers(function: &Function) -> bool {
    let sunrise_point = matches!(function.device, 0xa110..=0xa11f | 0xa167..=0xa16a);
    let union_point = matches!(function.device, 0xa290..=0xa29f | 0xa2e7..=0xa2ee);
    let mobile = matches!(function.device, 0x9d10..=0x9d1b);
    function.vendor == INTEL && (sunrise_point || union_point || mobile)
}

/// Functions in Intel's root complexes send each other nothing but requests whose addresses are translated
/// already (VT-d specification, "Root-Complex Peer to Peer Considerations"), and no context entry of ours
/// lets a function claim that.
fn never_reaches_peers(space: &impl ConfigSpace, function: &Function) -> bool {
    const ROOT_COMPLEX_ENDPOINT: u32 = 9;
    let Some(express) = find(space, function.bdf, PCI_EXPRESS) else { return false };
    let kind = space.read(function.bdf, express.offset + 2, Width::Word) >> 4 & 0xf;
    function.vendor == INTEL && kind == ROOT_COMPLEX_ENDPOINT
}

/// Switches isolation on in each of `functions` that has it. To be called once, before
/// [`crate::groups::Groups::new`].
pub fn enable<'a>(space: &mut impl ConfigSpace, functions: impl IntoIterator<Item = &'a Function>) {
    for function in functions {
        if let Some(Registers { control, width, wanted }) = registers(space, function) {
            space.write(function.bdf, control, width, wanted.bits().into());
        }
    }
}

/// Whether `function` has the capability and every control is as [`enable`] sets it, or needs none.
pub(crate) fn isolates(space: &impl ConfigSpace, function: &Function) -> bool {
    let on = |Registers { control, width, wanted }| {
        Acs::from_bits_truncate(space.read(function.bdf, control, width) as u16) == wanted
    };
    registers(space, function).map_or_else(|| never_reaches_peers(space, function), on)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeSpace;

    use arch::Bdf;

    const PORT: Bdf = Bdf::new(0, 3, 0);

    fn port(offered: u16, control: u16) -> FakeSpace {
        let mut space = FakeSpace::default();
        let device = space.device(PORT, 0x060400);
        device.set(0x100, 0x0001_000d);
        device.set(0x104, u32::from(offered) | u32::from(control) << 16);
        device.set_writable(0x104, 0xffff_0000);
        space
    }

    fn isolates_now(space: &FakeSpace) -> bool {
        isolates(space, &Function::read(space, PORT).unwrap())
    }

    fn enable_now(space: &mut FakeSpace) {
        let function = Function::read(space, PORT).unwrap();
        enable(space, [&function]);
    }

    #[test]
    fn a_function_that_offers_isolation_isolates_once_it_is_on() {
        for offered in [0x1f, 0x5f, 0x7f, 0x1d, 0x0c] {
            // What lets peers talk may have been left on.
            let mut space = port(offered, offered & 0x60);
            assert!(!isolates_now(&space), "{offered:#x}");
            enable_now(&mut space);
            assert!(isolates_now(&space), "{offered:#x}");
            assert_eq!(space.read(PORT, 0x106, Width::Word), u32::from(offered & 0x1f));
        }
    }

    #[test]
    fn a_function_that_lets_chosen_peers_talk_does_not_isolate() {
        assert!(isolates_now(&port(0x7f, 0x1f)));
        for control in [0x3f, 0x5f, 0x1b, 0] {
            assert!(!isolates_now(&port(0x7f, control)), "{control:#x}");
        }
    }

    #[test]
    fn a_function_without_the_capability_is_left_alone() {
        let mut space = FakeSpace::default();
        space.device(PORT, 0x060400).set_writable(0x104, u32::MAX);
        enable_now(&mut space);
        assert!(!isolates_now(&space));
        assert_eq!(space.read(PORT, 0x104, Width::Dword), 0);
    }

    /// Capability at 0x144, control at 0x148; the word at 0x146 is read-only.
    fn sunrise_point(device: u32) -> FakeSpace {
        let mut space = FakeSpace::default();
        let port = space.device(PORT, 0x060400);
        port.set(0, device << 16 | 0x8086);
        port.set(0x100, 0x1401_0001);
        port.set(0x140, 0x0001_000d);
        port.set(0x144, 0x0000_000f);
        port.set_writable(0x148, 0x0000_000f);
        space
    }

    #[test]
    fn sunrise_point_root_ports_have_their_control_register_8_bytes_in() {
        for device in [0x9d10, 0x9d1b, 0xa110, 0xa16a, 0xa290, 0xa2ee] {
            let mut space = sunrise_point(device);
            assert!(!isolates_now(&space), "{device:#x}");
            enable_now(&mut space);
            assert!(isolates_now(&space), "{device:#x}");
            assert_eq!(space.read(PORT, 0x148, Width::Dword), 0x0f);
            assert_eq!(space.read(PORT, 0x144, Width::Dword), 0x0f);
        }
        for device in [0x9d0f, 0x9d1c, 0xa36c] {
            let mut space = sunrise_point(device);
            enable_now(&mut space);
            assert!(!isolates_now(&space), "{device:#x} has the specification's registers");
        }
    }

    #[test]
    fn intels_functions_in_the_root_complex_isolate_by_themselves_and_nobody_elses_do() {
        for (vendor, kind, expected) in [(0x8086, 9, true), (0x8086, 0, false), (0x1022, 9, false)]
        {
            let mut space = FakeSpace::default();
            let function = space.device(PORT, 0x088000);
            function.set(0, 0x1234_0000 | vendor);
            function.capability(0x40, PCI_EXPRESS, &[kind << 4 | 2, 0]);
            assert_eq!(isolates_now(&space), expected, "{vendor:#x} {kind}");
        }
    }
}
