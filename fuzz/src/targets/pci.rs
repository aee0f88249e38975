//! PCI functions that say anything, and a guest's view of one.

use std::cell::Cell;
use std::collections::BTreeSet;

use ::pci::bar::size_bars;
use ::pci::claims::Owners;
use ::pci::{Bar, Claims, Effect, Groups, VirtualFunction, header, reset};
use arch::address::HpaRange;
use arch::machine::ConfigSpace;
use arch::msr::PortRange;
use arch::{Bdf, Hpa, Width};
use guest::fake::FakeConfig;

use crate::input::Input;

const AT: Bdf = Bdf::new(0, 4, 0);
const WIDTHS: [Width; 3] = [Width::Byte, Width::Word, Width::Dword];
/// Capabilities of which a guest writes nothing that reaches the function by itself: MSI, MSI-X, Advanced Features,
/// Enhanced Allocation (PCI Code and ID Assignment Specification, "Capability IDs").
const CLOSED: [u8; 4] = [0x05, 0x11, 0x13, 0x14];

/// Configuration space whose reads are changed by a stream of bytes, while there are any.
pub(super) struct Lying {
    pub(super) real: FakeConfig,
    lies: Vec<u8>,
    told: Cell<usize>,
}

impl Lying {
    pub(super) fn new(real: FakeConfig, lies: &[u8]) -> Self {
        Self { real, lies: lies.to_vec(), told: Cell::new(0) }
    }
}

impl ConfigSpace for Lying {
    fn read(&self, function: Bdf, offset: u16, width: Width) -> u32 {
        let mut lies = Input(self.lies.get(self.told.get()..).unwrap_or_default());
        let lie = if lies.byte() & 3 != 1 { 0 } else { lies.dword() };
        self.told.set(self.lies.len() - lies.0.len());
        self.real.read(function, offset, width) ^ lie & width.mask() as u32
    }

    fn write(&mut self, function: Bdf, offset: u16, width: Width, value: u32) {
        self.real.write(function, offset, width, value);
    }
}

/// A function: its identity, BARs of any kind, then dwords anywhere.
fn function(config: &mut FakeConfig, at: Bdf, input: &mut Input<'_>) {
    let mut registers =
        vec![(0, 0x1234_8086, 0), (4, 0x0010_0000 | u32::from(input.byte() & 7), 0x7ff)];
    registers.push((8, input.dword(), 0));
    registers.push((0xc, u32::from(input.byte() & 0x83) << 16, 0));
    for register in 4..10 {
        let bits = input.byte() & 31;
        registers.push((4 * register, input.dword(), u32::MAX << bits & !0xf));
    }
    registers.push((0x34, u32::from(input.byte()), 0));
    for _ in 0..input.byte() & 31 {
        let offset = usize::from(input.byte()) << (input.byte() & 1) << 2 & 0xffc;
        registers.push((offset.max(0x28), input.dword(), if input.bit() { u32::MAX } else { 0 }));
    }
    config.add(at, &registers);
}

/// The first capability of each place, as a reader of the list finds them.
fn list(space: &impl ConfigSpace) -> Vec<(u8, u16)> {
    let mut found = Vec::new();
    let mut at = space.read(AT, 0x34, Width::Byte) as u16 & 0xfc;
    while at >= 0x40 && found.len() < 48 && found.iter().all(|(_, other)| *other != at) {
        found.push((space.read(AT, at, Width::Byte) as u8, at));
        at = space.read(AT, at + 1, Width::Byte) as u16 & 0xfc;
    }
    found
}

pub(super) fn view(input: &[u8]) {
    let mut input = Input(input);
    let (lies, wired) = (usize::from(input.byte()), input.bit());
    let lies = input.bytes(lies & 0x7f);
    let mut config = FakeConfig::default();
    function(&mut config, AT, &mut input);
    let honest = lies.is_empty();
    let mut space = Lying::new(config, lies);
    let bars = size_bars(&mut space, AT, 6);
    let mut view = VirtualFunction::with_bars(&space, AT, bars);
    if wired {
        view.wire(&space, 17);
    }
    let capabilities = list(&space.real);
    let begins: BTreeSet<u16> = capabilities.iter().map(|(_, at)| *at).collect();
    while !input.is_empty() {
        let kind = input.byte();
        let width = WIDTHS[usize::from(kind >> 4) % 3];
        let offset = input.word() & 0xfff & !(u16::from(width.bytes()) - 1);
        let offset = if kind & 8 == 0 { offset & 0xff } else { offset };
        if kind & 1 == 0 {
            let seen = view.read(&space, offset, width);
            assert!(u64::from(seen) <= width.mask());
            continue;
        }
        let Effect::PhysicalWrite { offset, width, .. } =
            view.write(&space, offset, width, input.dword())
        else {
            continue;
        };
        assert!(
            (0x40..0x100).contains(&offset) && offset.is_multiple_of(width.bytes().into()),
            "{offset:#x}"
        );
        if honest {
            let own = begins
                .range(..=offset)
                .next_back()
                .and_then(|at| capabilities.iter().find(|(_, own)| own == at));
            // The first eight bytes of each are its own, whatever kind it is.
            if let Some((id, at)) = own.filter(|(_, at)| offset < at + 8) {
                assert!(!CLOSED.contains(id), "{id:#x} at {at:#x}: a write at {offset:#x}");
            }
        }
    }
}

pub(super) fn scan(input: &[u8]) {
    let mut input = Input(input);
    let lies = usize::from(input.byte() & 0x7f);
    let told = input.bytes(lies);
    let mut config = FakeConfig::default();
    let mut there = BTreeSet::new();
    for _ in 0..1 + (input.byte() & 7) {
        let place = input.word();
        let at = Bdf::new((place >> 8) as u8 & 3, place as u8 >> 3, place as u8 & 7);
        there.insert(at);
        function(&mut config, at, &mut input);
    }
    let mut space = Lying::new(config, told);
    let functions: Vec<_> = header::scan(&space, 0, 0..=3).collect();
    let found: BTreeSet<Bdf> = functions.iter().map(|function| function.bdf).collect();
    assert_eq!(found.len(), functions.len(), "each once");
    assert!(lies > 0 || found.is_subset(&there));
    reset::quiesce(&mut space, &functions);
    let memory = HpaRange { start: Hpa::new(0), length: 0x8000_0000 };
    let ports = PortRange { first: 0, last: 0xfff };
    let owners = Owners { memory: vec![(memory, "memory")], ports: vec![(ports, "ports")] };
    let claims = Claims::record(&mut space, &functions, owners);
    for function in &functions {
        let sound = claims.check(function.bdf);
        let bars = claims.of(function.bdf).map_or([None; 6], |record| record.bars);
        for Bar { base, size, kind, .. } in bars.into_iter().flatten().filter(|bar| bar.base != 0) {
            assert!(size.is_power_of_two() && base.checked_add(size - 1).is_some(), "{kind:?}");
            let end = if kind == ::pci::BarKind::Io { 0x1000 } else { 0x8000_0000 };
            assert!(sound.is_err() || base >= end, "{base:#x}");
        }
    }
    let groups = Groups::new(&space, &functions);
    for function in &functions {
        assert!(groups.group(function.bdf).any(|other| other.bdf == function.bdf));
        assert!(groups.requesters(function.bdf).count() > 0);
    }
    let each: Vec<[Bdf; 1]> = functions.iter().map(|function| [function.bdf]).collect();
    for error in groups.divided(&each) {
        assert!(!error.to_string().is_empty());
    }
}
