//! MSR and I/O permission maps: which RDMSR, WRMSR, IN and OUT exit
//! (APM volume 2, "MSR Intercepts" and "I/O Intercepts").
//!
//! Pure. Invariant: what no pass names is intercepted.

use core::mem::{offset_of, size_of};

use arch::msr::{MsrPass, PortRange};

/// First MSR and place (byte offset) of each vector of the MSR permission map. The rest of the MSR
/// numbers always exit.
const MSR_VECTORS: [(u32, usize); 3] = [(0, 0), (0xc000_0000, 0x800), (0xc001_0000, 0x1000)];
/// MSRs in one vector.
const MSRS_PER_VECTOR: u32 = 0x2000;

/// The MSR permission map: two bits an MSR, read and write; 1 = exits.
#[repr(C, align(4096))]
pub struct MsrPermissionMap([u8; 0x2000]);

const _: () = assert!(size_of::<MsrPermissionMap>() == 2 * 4096);

impl MsrPermissionMap {
    /// Lets `passes` through and nothing else. In place: it is too large for a processor's stack.
    pub fn set<'a>(&mut self, passes: impl IntoIterator<Item = &'a MsrPass>) {
        self.0.fill(0xff);
        for pass in passes {
            self.pass(pass);
        }
    }

    fn pass(&mut self, pass: &MsrPass) {
        let allowed = u8::from(pass.read) | u8::from(pass.write) << 1;
        for (base, place) in MSR_VECTORS {
            let first = pass.first.max(base);
            let last = pass.last.min(base + (MSRS_PER_VECTOR - 1));
            for msr in first..=last {
                let index = (msr - base) as usize;
                if let Some(byte) = self.0.get_mut(place + index / 4) {
                    *byte &= !(allowed << (index % 4 * 2));
                }
            }
        }
    }
}

/// The I/O permission map: one bit a port; 1 = exits. An access of several bytes exits when any of
/// its ports does; the three bits behind port 0xFFFF are for accesses that run over the end.
#[repr(C, align(4096))]
pub struct IoPermissionMap([u8; 0x3000]);

const _: () = assert!(size_of::<IoPermissionMap>() == 3 * 4096);

impl IoPermissionMap {
    /// Lets `ranges` through and nothing else.
    pub fn set(&mut self, ranges: &[PortRange]) {
        self.0.fill(0xff);
        for port in ranges.iter().flat_map(|range| range.first..=range.last) {
            if let Some(byte) = self.0.get_mut(usize::from(port / 8)) {
                *byte &= !(1 << (port % 8));
            }
        }
    }
}

/// The maps that all virtual CPUs of a guest share. Any bytes are some.
#[repr(C, align(4096))]
pub struct PermissionMaps {
    msrs: MsrPermissionMap,
    /// Of a guest in xAPIC mode: no MSR of x2APIC mode passes.
    msrs_in_xapic_mode: MsrPermissionMap,
    ports: IoPermissionMap,
}

impl PermissionMaps {
    /// Bytes from the MSR permission map to the I/O permission map.
    pub(crate) const IO_OFFSET: u64 = offset_of!(Self, ports) as u64;
    /// Bytes to the MSR permission map of xAPIC mode.
    pub(crate) const XAPIC_OFFSET: u64 = offset_of!(Self, msrs_in_xapic_mode) as u64;

    /// These MSRs and ports do not exit, all others do.
    pub fn set(&mut self, msrs: &[MsrPass], ports: &[PortRange]) {
        self.msrs.set(msrs);
        self.msrs_in_xapic_mode.set(msrs.iter().filter(|pass| !pass.is_of_x2apic()));
        self.ports.set(ports);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn msr_map(passes: &[MsrPass]) -> MsrPermissionMap {
        let mut map = MsrPermissionMap([0; 0x2000]);
        map.set(passes);
        map
    }

    /// The manual's lookup, written out: (read exits, write exits).
    fn exits(map: &MsrPermissionMap, msr: u32) -> (bool, bool) {
        let bit = match msr {
            0..=0x1fff => msr * 2,
            0xc000_0000..=0xc000_1fff => 0x800 * 8 + (msr - 0xc000_0000) * 2,
            0xc001_0000..=0xc001_1fff => 0x1000 * 8 + (msr - 0xc001_0000) * 2,
            _ => return (true, true),
        };
        let at = |bit: u32| map.0[bit as usize / 8] & 1 << (bit % 8) != 0;
        (at(bit), at(bit + 1))
    }

    fn port_exits(map: &IoPermissionMap, port: u16) -> bool {
        map.0[usize::from(port) / 8] & 1 << (port % 8) != 0
    }

    fn any_msr() -> impl Strategy<Value = u32> {
        prop_oneof![
            0u32..0x2010,
            0xbfff_fff0u32..0xc000_2010,
            0xc000_fff0u32..0xc001_2010,
            any::<u32>()
        ]
    }

    prop_compose! {
        fn any_pass()(a in any_msr(), b in any_msr(), read: bool, write: bool) -> MsrPass {
            MsrPass { first: a.min(b), last: a.max(b), read, write }
        }
    }

    proptest! {
        #[test]
        fn an_msr_exits_unless_a_pass_names_it(
            passes in prop::collection::vec(any_pass(), 0..4),
            probes in prop::collection::vec(any_msr(), 64),
        ) {
            let map = msr_map(&passes);
            let edges = passes.iter().flat_map(|p| {
                [p.first.wrapping_sub(1), p.first, p.last, p.last.wrapping_add(1)]
            });
            for msr in probes.iter().copied().chain(edges) {
                let mapped = msr & 0x3fff_ffff & !0x1_0000 < 0x2000
                    && matches!(msr >> 16, 0 | 0xc000 | 0xc001);
                let named = |by: fn(&MsrPass) -> bool| {
                    mapped && passes.iter().any(|p| by(p) && p.first <= msr && msr <= p.last)
                };
                prop_assert_eq!(exits(&map, msr), (!named(|p| p.read), !named(|p| p.write)));
            }
        }

        #[test]
        fn a_port_exits_unless_a_range_has_it(
            ranges in prop::collection::vec((any::<u16>(), 0u16..40), 0..4),
        ) {
            let range = |(first, more): &(u16, u16)| {
                PortRange { first: *first, last: first.saturating_add(*more) }
            };
            let ranges: Vec<_> = ranges.iter().map(range).collect();
            let mut map = IoPermissionMap([0; 0x3000]);
            map.set(&ranges);
            for port in 0..=u16::MAX {
                let passed = ranges.iter().any(|range| range.contains(port));
                prop_assert_eq!(port_exits(&map, port), !passed, "port {:#x}", port);
            }
            prop_assert!(map.0[0x2000..].iter().all(|b| *b == 0xff), "behind the last port");
        }
    }

    #[test]
    fn passing_everything_opens_no_reserved_vector() {
        let map = msr_map(&[MsrPass { first: 0, last: u32::MAX, read: true, write: true }]);
        assert!(map.0[..0x1800].iter().all(|b| *b == 0));
        assert!(map.0[0x1800..].iter().all(|b| *b == 0xff));
    }

    #[test]
    fn in_xapic_mode_no_msr_of_x2apic_mode_passes() {
        let pass = |first, last| MsrPass { first, last, read: true, write: true };
        let passes = [pass(0x10, 0x20), pass(0x800, 0x83f), pass(0xc000_0100, 0xc000_0102)];
        let mut maps = PermissionMaps {
            msrs: msr_map(&[]),
            msrs_in_xapic_mode: msr_map(&[]),
            ports: IoPermissionMap([0; 0x3000]),
        };
        maps.set(&passes, &[]);
        assert!(maps.msrs.0 == msr_map(&passes).0);
        let [below, _, above] = passes;
        assert!(maps.msrs_in_xapic_mode.0 == msr_map(&[below, above]).0);
    }

    #[test]
    fn the_eoi_write_is_bit_0x1017() {
        let map = msr_map(&[MsrPass { first: 0x80b, last: 0x80b, read: false, write: true }]);
        assert_eq!(map.0[0x202], 0x7f);
    }
}
