//! Which MSR and port accesses exit (SDM "MSR-Bitmap Address" and "I/O-Bitmap Addresses").
//!
//! Invariant: what nobody lets through exits. Pure; the kernel puts the tables where the VMCS points.

use core::mem::offset_of;

use arch::msr::{MsrPass, PortRange};

/// Bytes of each of the four parts of the MSR bitmap.
const PART: usize = 1024;
/// MSRs that a part covers.
const PART_MSRS: u32 = 8 * PART as u32;
/// First MSR of the low and of the high parts. All other MSRs always exit.
const PART_FIRST: [u32; 2] = [0, 0xc000_0000];

/// The MSR bitmap: reads of low MSRs, reads of high MSRs, writes of low MSRs, writes of high MSRs.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct MsrBitmap([[[u8; PART]; 2]; 2]);

const _: () = assert!(size_of::<MsrBitmap>() == 4096);

impl MsrBitmap {
    /// Lets `passes` through and nothing else. In place: it is too large for a processor's stack.
    pub fn set<'a>(&mut self, passes: impl IntoIterator<Item = &'a MsrPass>) {
        self.0.as_flattened_mut().as_flattened_mut().fill(0xff);
        for pass in passes {
            for (direction, passes) in self.0.iter_mut().zip([pass.read, pass.write]) {
                if passes {
                    clear_msrs(direction, pass.first, pass.last);
                }
            }
        }
    }
}

fn clear_msrs(parts: &mut [[u8; PART]; 2], first: u32, last: u32) {
    for (part, base) in parts.iter_mut().zip(PART_FIRST) {
        let end = base + (PART_MSRS - 1);
        if first <= end && last >= base {
            let (from, to) = (first.max(base) - base, last.min(end) - base);
            for index in from..=to {
                clear(part, index as usize);
            }
        }
    }
}

/// The I/O bitmaps: A (ports 0 to 0x7fff) in the first page, B (the rest) in the second.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct IoBitmaps([u8; 8192]);

const _: () = assert!(size_of::<IoBitmaps>() == 8192);

impl IoBitmaps {
    /// Bytes from bitmap A to bitmap B.
    pub const B_OFFSET: u64 = 4096;

    /// Lets `ranges` through and nothing else.
    pub fn set(&mut self, ranges: &[PortRange]) {
        self.0.fill(0xff);
        for port in ranges.iter().flat_map(|range| range.first..=range.last) {
            clear(&mut self.0, port as usize);
        }
    }
}

/// The bitmaps that all virtual CPUs of a guest share. Any bytes are some.
#[repr(C, align(4096))]
pub struct Bitmaps {
    msrs: MsrBitmap,
    /// Of a guest in xAPIC mode: no MSR of x2APIC mode passes.
    msrs_in_xapic_mode: MsrBitmap,
    ports: IoBitmaps,
}

impl Bitmaps {
    /// Bytes from the MSR bitmap to the I/O bitmaps.
    pub(crate) const IO_OFFSET: u64 = offset_of!(Self, ports) as u64;
    /// Bytes to the MSR bitmap of xAPIC mode.
    pub(crate) const XAPIC_OFFSET: u64 = offset_of!(Self, msrs_in_xapic_mode) as u64;

    /// These MSRs and ports do not exit, all others do.
    pub fn set(&mut self, msrs: &[MsrPass], ports: &[PortRange]) {
        self.msrs.set(msrs);
        self.msrs_in_xapic_mode.set(msrs.iter().filter(|pass| !pass.is_of_x2apic()));
        self.ports.set(ports);
    }
}

fn clear(bytes: &mut [u8], bit: usize) {
    if let Some(byte) = bytes.get_mut(bit / 8) {
        *byte &= !(1 << (bit % 8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn msr_bitmap(passes: &[MsrPass]) -> MsrBitmap {
        let mut bitmap = MsrBitmap([[[0; PART]; 2]; 2]);
        bitmap.set(passes);
        bitmap
    }

    fn io_bitmaps(ranges: &[PortRange]) -> IoBitmaps {
        let mut bitmaps = IoBitmaps([0; 8192]);
        bitmaps.set(ranges);
        bitmaps
    }

    /// Whether an access exits, as the SDM tells it: by byte offset in the 4 KiB page.
    fn msr_exits(bitmap: &MsrBitmap, msr: u32, write: bool) -> bool {
        let offset = match msr {
            0..=0x1fff => 0,
            0xc000_0000..=0xc000_1fff => 1024,
            _ => return true,
        } + if write { 2048 } else { 0 };
        let bytes = bitmap.0.as_flattened().as_flattened();
        bytes[offset + (msr as usize & 0x1fff) / 8] & 1 << (msr % 8) != 0
    }

    fn io_exits(bitmaps: &IoBitmaps, port: u16) -> bool {
        let page = if port < 0x8000 { 0 } else { IoBitmaps::B_OFFSET as usize };
        bitmaps.0[page + (port as usize & 0x7fff) / 8] & 1 << (port % 8) != 0
    }

    fn any_msr() -> impl Strategy<Value = u32> {
        prop_oneof![0_u32..0x2100, 0xbfff_ff00_u32..0xc000_2100, any::<u32>()]
    }

    prop_compose! {
        fn any_pass()(a in any_msr(), b in any_msr(), read: bool, write: bool) -> MsrPass {
            MsrPass { first: a, last: b, read, write }
        }
    }

    prop_compose! {
        fn any_range()(first: u16, last: u16) -> PortRange { PortRange { first, last } }
    }

    proptest! {
        #[test]
        fn an_msr_exits_unless_a_pass_names_it(
            passes in vec(any_pass(), 0..6), msrs in vec(any_msr(), 64),
        ) {
            let bitmap = msr_bitmap(&passes);
            let edges = passes.iter().flat_map(|p| {
                [p.first, p.last, p.first.wrapping_sub(1), p.last.wrapping_add(1)]
            });
            for msr in edges.chain(msrs.iter().copied()) {
                let covered = msr <= 0x1fff || (0xc000_0000..=0xc000_1fff).contains(&msr);
                let passed = |by: fn(&MsrPass) -> bool| {
                    covered && passes.iter().any(|p| by(p) && p.first <= msr && msr <= p.last)
                };
                prop_assert_eq!(msr_exits(&bitmap, msr, false), !passed(|p| p.read));
                prop_assert_eq!(msr_exits(&bitmap, msr, true), !passed(|p| p.write));
            }
        }

        #[test]
        fn a_port_exits_unless_a_range_has_it(ranges in vec(any_range(), 0..4)) {
            let bitmaps = io_bitmaps(&ranges);
            for port in 0..=u16::MAX {
                let passed = ranges.iter().any(|range| range.contains(port));
                prop_assert_eq!(io_exits(&bitmaps, port), !passed);
            }
        }
    }

    #[test]
    fn in_xapic_mode_no_msr_of_x2apic_mode_passes() {
        let pass = |first, last| MsrPass { first, last, read: true, write: true };
        let passes = [pass(0x10, 0x20), pass(0x800, 0x83f), pass(0xc000_0100, 0xc000_0102)];
        let (msrs, ports) = (msr_bitmap(&[]), io_bitmaps(&[]));
        let mut bitmaps = Bitmaps { msrs_in_xapic_mode: msrs.clone(), msrs, ports };
        bitmaps.set(&passes, &[]);
        assert!(bitmaps.msrs == msr_bitmap(&passes));
        let [below, _, above] = passes;
        assert!(bitmaps.msrs_in_xapic_mode == msr_bitmap(&[below, above]));
    }

    #[test]
    fn with_no_pass_every_bit_is_set() {
        assert!(msr_bitmap(&[]).0.as_flattened().as_flattened().iter().all(|b| *b == 0xff));
        assert!(io_bitmaps(&[]).0.iter().all(|b| *b == 0xff));
    }
}
