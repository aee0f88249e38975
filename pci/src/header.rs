//! Identity of a function, and the scan that finds all of them.
//!
//! Owns the offsets of the type 0/1 configuration header (PCI Local Bus Specification,
//! "Configuration Space Header"; PCI-to-PCI Bridge Architecture Specification for type 1).
//! Invariant: the scan visits a bus once, however the bridges lie.

use alloc::vec::Vec;

use arch::machine::ConfigSpace;
use arch::msr::PortRange;
use arch::{Bdf, Width};
use arrayvec::ArrayVec;

/// Vendor ID and Device ID.
pub const VENDOR_ID: u16 = 0x00;
/// Command register; the Status register is the upper half of its dword.
pub const COMMAND: u16 = 0x04;
/// Revision ID and Class Code.
pub const REVISION_ID: u16 = 0x08;
/// Cache Line Size; its dword also has Latency Timer, Header Type and BIST.
pub const CACHE_LINE_SIZE: u16 = 0x0c;
pub const HEADER_TYPE: u16 = 0x0e;
/// The first Base Address Register.
pub const BAR0: u16 = 0x10;
/// The last Base Address Register of a type 0 header.
pub const BAR5: u16 = 0x24;
/// Primary, Secondary and Subordinate Bus Number of a bridge.
pub const PRIMARY_BUS: u16 = 0x18;
/// Expansion ROM Base Address of a type 0 header.
pub const EXPANSION_ROM: u16 = 0x30;
pub const CAPABILITIES_POINTER: u16 = 0x34;
/// Interrupt Line; Interrupt Pin is the next byte.
pub const INTERRUPT_LINE: u16 = 0x3c;
/// Header Type: this device has more than function 0.
pub const MULTI_FUNCTION: u8 = 0x80;

bitflags::bitflags! {
    /// Command register (PCI Local Bus Specification, "Device Control").
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Command: u16 {
        /// I/O Space.
        const IO_SPACE = 1;
        const MEMORY_SPACE = 1 << 1;
        const BUS_MASTER = 1 << 2;
        const PARITY_ERROR_RESPONSE = 1 << 6;
        const SERR_ENABLE = 1 << 8;
        /// Interrupt Disable (of INTx).
        const INTERRUPT_DISABLE = 1 << 10;
    }
}

impl Command {
    /// Reads the register of `function`.
    #[must_use]
    pub fn read(space: &impl ConfigSpace, function: Bdf) -> Self {
        Self::from_bits_retain(space.read(function, COMMAND, Width::Word) as u16)
    }

    /// Writes the register of `function`. A word, so that no bit of Status is cleared.
    pub fn write(self, space: &mut impl ConfigSpace, function: Bdf) {
        space.write(function, COMMAND, Width::Word, self.bits().into());
    }
}

/// Layout of a function's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderType {
    /// Type 0: a device.
    Device,
    /// Type 1: a PCI-to-PCI bridge (or a PCI Express port).
    Bridge {
        /// The bus behind it.
        secondary: u8,
        /// The highest bus behind it.
        subordinate: u8,
    },
    /// Something else (CardBus).
    Unknown(u8),
}

/// A function that answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Function {
    /// Its address.
    pub bdf: Bdf,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class Code: base class, sub-class and programming interface in bits 23:0.
    pub class: u32,
    /// Layout of its header.
    pub header: HeaderType,
    /// Its device says that it has more than function 0.
    pub multi_function: bool,
}

impl Function {
    /// Reads the identity of `bdf`; `None` where nothing answers.
    #[must_use]
    pub fn read(space: &impl ConfigSpace, bdf: Bdf) -> Option<Self> {
        let identity = space.read(bdf, VENDOR_ID, Width::Dword);
        if identity as u16 == 0xffff || identity == 0 {
            return None;
        }
        let header_type = space.read(bdf, HEADER_TYPE, Width::Byte) as u8;
        let header = match header_type & !MULTI_FUNCTION {
            0 => HeaderType::Device,
            1 => {
                let [_, secondary, subordinate, _] =
                    space.read(bdf, PRIMARY_BUS, Width::Dword).to_le_bytes();
                HeaderType::Bridge { secondary, subordinate }
            }
            other => HeaderType::Unknown(other),
        };
        Some(Self {
            bdf,
            vendor: identity as u16,
            device: (identity >> 16) as u16,
            class: space.read(bdf, REVISION_ID, Width::Dword) >> 8,
            header,
            multi_function: header_type & MULTI_FUNCTION != 0,
        })
    }

    /// Whether this is a host, ISA, PCI or other bridge (base class 06h), which stays the
    /// hypervisor's.
    #[must_use]
    pub const fn is_bridge(&self) -> bool {
        self.class >> 16 == 0x06
    }

    /// Whether this is the platform's own and no guest's business: an SMBus controller (memory modules,
    /// clocks, fans) or Intel's SPI controller, behind which the firmware lies. They stand among the
    /// functions of a chipset beside network and sound, and master no bus unless a driver has them do so.
    #[must_use]
    pub const fn is_of_the_platform(&self) -> bool {
        const SMBUS: u32 = 0x0c_05;
        const OTHER_SERIAL_BUS: u32 = 0x0c_80;
        match self.class >> 8 {
            SMBUS => true,
            OTHER_SERIAL_BUS => self.vendor == 0x8086,
            _ => false,
        }
    }

    /// Whether this may stay the hypervisor's, quiet, while others of its group go to a guest.
    #[must_use]
    pub const fn may_stay_behind(&self) -> bool {
        self.is_bridge() || self.is_of_the_platform()
    }

    /// Whether no guest can have this: a bridge, by class or header, or an IOMMU (PCI Code and ID
    /// Assignment Specification, "Class Codes").
    #[must_use]
    pub fn is_infrastructure(&self) -> bool {
        const IOMMU: u32 = 0x08_06;
        self.is_bridge() || self.header != HeaderType::Device || self.class >> 8 == IOMMU
    }

    /// Whether the function may be assigned although firmware reserves memory for its DMA: a USB controller,
    /// which firmware uses for its keyboard until a driver comes, and a display device, whose reserved
    /// memory is what its own driver finds by its registers (PCI Code and ID Assignment Specification,
    /// "Class Codes").
    #[must_use]
    pub const fn outlives_reserved_memory(&self) -> bool {
        const USB: u32 = 0x0c_03;
        const DISPLAY: u32 = 0x03;
        self.class >> 8 == USB || self.class >> 16 == DISPLAY
    }

    /// The fixed ISA resources of an IDE controller whose channels are in compatibility mode (PCI
    /// IDE Controller Specification, "Programming Interface"); empty for anything else.
    #[must_use]
    pub fn legacy_ide(&self) -> ArrayVec<LegacyIde, 2> {
        const IDE: u32 = 0x0101;
        let channel = |native: u32, command: u16, control: u16, gsi| {
            (self.class >> 8 == IDE && self.class & native == 0).then_some(LegacyIde {
                command: PortRange { first: command, last: command + 7 },
                control: PortRange { first: control, last: control },
                gsi,
            })
        };
        [channel(1, 0x1f0, 0x3f6, 14), channel(4, 0x170, 0x376, 15)].into_iter().flatten().collect()
    }
}

/// One IDE channel in compatibility mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LegacyIde {
    /// The command block.
    pub command: PortRange,
    /// The control register.
    pub control: PortRange,
    /// Its interrupt line, edge-triggered.
    pub gsi: u32,
}

/// Finds every function of a segment on the buses `buses` and behind the bridges there. A bus that a
/// bridge says is behind it is looked at if that bridge, or one behind it, leads there; any other may be
/// a root bus of its own, of which a machine with several sockets has some.
pub fn scan<C: ConfigSpace>(
    space: &C,
    segment: u16,
    buses: impl IntoIterator<Item = u8>,
) -> Scan<'_, C> {
    let mut possible = Buses::default();
    buses.into_iter().for_each(|bus| possible.add(bus));
    let (wanted, done, claimed) = (Buses::default(), Buses::default(), Buses::default());
    Scan { space, segment, possible, wanted, claimed, done, next: None }
}

/// Leaves out of `functions` those of segment 0 that are another segment's, seen a second time: the ports
/// lead to the first segment of the machine, whatever the MCFG calls it. A BAR at the same address is the
/// same BAR.
pub fn leave_out_twins(space: &impl ConfigSpace, functions: &mut Vec<Function>) {
    const FIRST_BAR: u16 = 0x10;
    const BARS: u16 = 6;
    let bars = |function: &Function| {
        let at = function.bdf;
        core::array::from_fn::<u32, { BARS as usize }, _>(|index| {
            space.read(at, FIRST_BAR + 4 * index as u16, Width::Dword)
        })
    };
    let place = |bdf: Bdf| (bdf.bus(), bdf.device(), bdf.function());
    let elsewhere = functions.iter().filter(|it| it.bdf.segment() != 0);
    let elsewhere: Vec<Function> = elsewhere.copied().collect();
    functions.retain(|it| {
        it.bdf.segment() != 0
            || !elsewhere.iter().any(|other| {
                place(it.bdf) == place(other.bdf)
                    && (it.vendor, it.device) == (other.vendor, other.device)
                    && bars(it).iter().any(|bar| bar & !0xf != 0)
                    && bars(it) == bars(other)
            })
    });
}

/// A set of bus numbers.
#[derive(Clone, Copy, Debug, Default)]
struct Buses([u64; 4]);

impl Buses {
    const fn add(&mut self, bus: u8) {
        self.0[(bus >> 6) as usize] |= 1 << (bus & 63);
    }

    /// The lowest that none of `others` has.
    fn first_without(&self, others: &[Self]) -> Option<u8> {
        (0..4_u8).find_map(|word| {
            let bits = |set: &Self| set.0[usize::from(word)];
            let left = others.iter().fold(bits(self), |left, other| left & !bits(other));
            (left != 0).then(|| word * 64 + left.trailing_zeros() as u8)
        })
    }
}

/// The iterator behind [`scan`].
#[derive(Debug)]
pub struct Scan<'a, C> {
    space: &'a C,
    segment: u16,
    /// May be root buses.
    possible: Buses,
    /// Behind a bridge.
    wanted: Buses,
    /// Some bridge says that they are behind it.
    claimed: Buses,
    done: Buses,
    next: Option<Bdf>,
}

impl<C: ConfigSpace> Scan<'_, C> {
    /// The first function of a bus that is not done: those behind bridges first.
    fn next_bus(&mut self) -> Option<Bdf> {
        let behind = self.wanted.first_without(&[self.done]);
        let bus = behind.or_else(|| self.possible.first_without(&[self.done, self.claimed]))?;
        self.done.add(bus);
        Some(Bdf::new(bus, 0, 0).in_segment(self.segment))
    }

    /// Where to look after `bdf`, on the same bus.
    fn after(bdf: Bdf, step: u16) -> Option<Bdf> {
        let next = Bdf::from_requester_id(bdf.requester_id().checked_add(step)?);
        (next.bus() == bdf.bus()).then_some(next.in_segment(bdf.segment()))
    }
}

impl<C: ConfigSpace> Iterator for Scan<'_, C> {
    type Item = Function;

    fn next(&mut self) -> Option<Function> {
        loop {
            let bdf = match self.next {
                Some(bdf) => bdf,
                None => self.next_bus()?,
            };
            let found = Function::read(self.space, bdf);
            // Function 0 decides whether the other seven are looked for.
            let alone = bdf.function() == 0 && !found.is_some_and(|f| f.multi_function);
            self.next = Self::after(bdf, if alone { 8 } else { 1 });
            let Some(function) = found else { continue };
            if let HeaderType::Bridge { secondary: secondary @ 1.., subordinate } = function.header
            {
                self.wanted.add(secondary);
                (secondary..=subordinate).for_each(|bus| self.claimed.add(bus));
            }
            return Some(function);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeSpace;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn bdfs(space: &FakeSpace) -> Vec<Bdf> {
        scan(space, 0, [0]).map(|f| f.bdf).collect()
    }

    #[test]
    fn scan_follows_bridges_and_multi_function_devices() {
        let mut space = FakeSpace::default();
        space.device(Bdf::new(0, 0, 0), 0x060000);
        space.bridge(Bdf::new(0, 1, 0), 3);
        space.device(Bdf::new(0, 2, 0), 0x020000).bytes[0x0e] = 0x80;
        space.device(Bdf::new(0, 2, 3), 0x020000);
        space.device(Bdf::new(0, 4, 1), 0x020000);
        space.device(Bdf::new(3, 31, 0), 0x010802);
        let expected = [(0, 0, 0), (0, 1, 0), (0, 2, 0), (0, 2, 3), (3, 31, 0)]
            .map(|(b, d, f)| Bdf::new(b, d, f));
        assert_eq!(bdfs(&space), expected);
    }

    #[test]
    fn what_the_ports_show_of_another_segment_is_left_out() {
        let mut space = FakeSpace::default();
        let at = |segment, device| Bdf::new(0, device, 0).in_segment(segment);
        for segment in [0, 1] {
            for device in [3, 4, 5] {
                // The same BAR; no BAR; BARs of their own.
                let bar = [0xfe, 0, 0xe0 + segment as u8][device as usize - 3];
                space.device(at(segment, device), 0x010802).bytes[0x13] = bar;
            }
        }
        let mut functions: Vec<Function> =
            [0, 1].into_iter().flat_map(|segment| scan(&space, segment, [0])).collect();
        leave_out_twins(&space, &mut functions);
        let left: Vec<Bdf> = functions.iter().map(|it| it.bdf).collect();
        assert_eq!(left, [at(0, 4), at(0, 5), at(1, 3), at(1, 4), at(1, 5)]);
    }

    /// A machine with root buses 0, 0x40 and 0x80, of which only the first has function 0 at device 0.
    fn sockets() -> FakeSpace {
        let mut space = FakeSpace::default();
        space.device(Bdf::new(0, 0, 0), 0x060000);
        space.bridge(Bdf::new(0, 1, 0), 3);
        space.device(Bdf::new(3, 0, 0), 0x010802);
        space.bridge(Bdf::new(0x40, 2, 0), 0x41);
        space.device(Bdf::new(0x41, 0, 0), 0x010802);
        space.device(Bdf::new(0x80, 5, 0), 0x088000);
        space
    }

    #[test]
    fn root_buses_other_than_0_are_found_with_what_is_behind_them() {
        let found: Vec<Bdf> = scan(&sockets(), 0, 0..=255).map(|f| f.bdf).collect();
        let expected = [(0, 0), (0, 1), (3, 0), (0x40, 2), (0x41, 0), (0x80, 5)];
        assert_eq!(found, expected.map(|(bus, device)| Bdf::new(bus, device, 0)));
    }

    #[test]
    fn a_bus_that_a_bridge_claims_is_no_root_bus() {
        let mut space = sockets();
        let bridge = Bdf::new(0, 1, 0);
        space.bridge(bridge, 3);
        space.functions.get_mut(&bridge).unwrap().set(0x18, 0x0005_0300);
        space.device(Bdf::new(4, 0, 0), 0x010802);
        assert!(scan(&space, 0, 0..=255).all(|f| f.bdf != Bdf::new(4, 0, 0)));
        // A bridge that the firmware has not set up claims none.
        space.bridge(bridge, 0);
        assert!(scan(&space, 0, 0..=255).any(|f| f.bdf == Bdf::new(4, 0, 0)));
    }

    #[test]
    fn each_segment_has_buses_of_its_own() {
        let (mut space, at) = (sockets(), Bdf::new(0x41, 0, 0).in_segment(1));
        space.bridge(Bdf::new(0x40, 0, 0).in_segment(1), 0x41);
        space.device(at, 0x020000);
        let found: Vec<Bdf> = scan(&space, 1, 0x40..=0xff).map(|f| f.bdf).collect();
        assert_eq!(found, [Bdf::new(0x40, 0, 0).in_segment(1), at]);
        assert_eq!(scan(&space, 0, 0..=255).count(), 6);
    }

    #[test]
    fn a_function_without_function_0_is_not_found() {
        let mut space = FakeSpace::default();
        space.device(Bdf::new(0, 4, 1), 0x020000);
        assert_eq!(bdfs(&space), []);
    }

    proptest! {
        #[test]
        fn bridges_that_lie_are_visited_once(bridges in proptest::collection::vec((0u16..0x400, 0u8..4), 0..12)) {
            let mut space = FakeSpace::default();
            for (id, secondary) in bridges {
                space.bridge(Bdf::from_requester_id(id & !7), secondary);
            }
            let mut seen = bdfs(&space);
            let all = seen.len();
            seen.sort();
            seen.dedup();
            prop_assert_eq!(seen.len(), all);
        }
    }

    #[test]
    fn usb_controllers_and_displays_alone_outlive_reserved_memory() {
        let mut space = FakeSpace::default();
        let classes = [
            0x0c_0330, 0x0c_0320, 0x0c_0300, 0x03_0000, 0x03_8000, 0x01_0802, 0x02_0000, 0x0c_0500,
        ];
        let may = classes.map(|class| {
            space.device(Bdf::new(0, 1, 0), class);
            Function::read(&space, Bdf::new(0, 1, 0)).unwrap().outlives_reserved_memory()
        });
        assert_eq!(may, [true, true, true, true, true, false, false, false]);
    }

    #[test]
    fn only_compatibility_mode_ide_has_isa_resources() {
        let mut space = FakeSpace::default();
        let at = Bdf::new(0, 1, 0);
        let channels = |space: &FakeSpace| -> Vec<u32> {
            Function::read(space, at).unwrap().legacy_ide().iter().map(|c| c.gsi).collect()
        };
        space.device(at, 0x010180);
        assert_eq!(channels(&space), [14, 15]);
        space.device(at, 0x010181);
        assert_eq!(channels(&space), [15]);
        space.device(at, 0x010185);
        assert_eq!(channels(&space), []);
        space.device(at, 0x010600);
        assert_eq!(channels(&space), []);
    }
}
