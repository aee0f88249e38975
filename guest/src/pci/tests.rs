//! The bus against a machine that records what is done to it.

mod shared;

use std::collections::BTreeMap;
use std::fmt;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use arch::address::HpaRange;
use arch::interrupt::{ApicId, MsiMessage};
use arch::machine::{CpuidResult, InterruptLine, Part, PitRegister, RouteRefused};
use arch::machine_check::MachineCheck;
use arch::{Gpa, Hpa, Vector, Width};
use pci::Owned;
use pci::msix::entry_writes;
use proptest::prelude::*;

use super::*;

const NVME: Bdf = Bdf::new(0, 4, 0);
const NIC: Bdf = Bdf::new(2, 0, 1);
const OTHER: Bdf = Bdf::new(0, 6, 0);
const IDE: Bdf = Bdf::new(0, 1, 1);
const BAR: u64 = 0xfebd_0000;
const SMALL_BAR: u64 = 0xfebe_0400;
const ECAM: u64 = 0xe000_0000;

/// Configuration space of bytes with a mask of what can be written.
#[derive(Clone, Default)]
struct Space(BTreeMap<Bdf, (Vec<u8>, Vec<u8>)>);

impl Space {
    /// Dwords at offsets, each with its writable bits.
    fn device(&mut self, at: Bdf, class: u32, registers: &[(usize, u32, u32)]) {
        let mut bytes = (vec![0; 4096], vec![0; 4096]);
        for (offset, value, writable) in
            [(0, 0x1234_8086, 0), (4, 0x0010_0003, 0x7ff), (8, class << 8, 0)]
                .iter()
                .chain(registers)
        {
            bytes.0[*offset..offset + 4].copy_from_slice(&value.to_le_bytes());
            bytes.1[*offset..offset + 4].copy_from_slice(&writable.to_le_bytes());
        }
        self.0.insert(at, bytes);
    }
}

impl ConfigSpace for Space {
    fn read(&self, function: Bdf, offset: u16, width: Width) -> u32 {
        assert_eq!(offset % u16::from(width.bytes()), 0);
        let Some((bytes, _)) = self.0.get(&function) else { return width.mask() as u32 };
        (0..usize::from(width.bytes()))
            .fold(0, |value, i| value | u32::from(bytes[usize::from(offset) + i]) << (8 * i))
    }

    fn write(&mut self, function: Bdf, offset: u16, width: Width, value: u32) {
        assert_eq!(offset % u16::from(width.bytes()), 0);
        let Some((bytes, writable)) = self.0.get_mut(&function) else { return };
        for i in 0..usize::from(width.bytes()) {
            let at = usize::from(offset) + i;
            bytes[at] = bytes[at] & !writable[at] | (value >> (8 * i)) as u8 & writable[at];
        }
    }
}

/// It panics where the bus asks for what is not the guest's.
#[derive(Default)]
struct Recorder {
    owned: Owned,
    /// 4 KiB pages of device memory: guest to host.
    mapped: BTreeMap<u64, u64>,
    registers: BTreeMap<u64, u8>,
    routes: Vec<(InterruptLine, Option<InterruptTarget>)>,
    rung: Vec<(ApicId, Vector)>,
    log: Vec<String>,
}

impl Recorder {
    /// The machine of a guest that has these functions.
    fn of(config: &Space, functions: &[(Bdf, [Option<Bar>; 6])]) -> Self {
        let mut owned = Owned::default();
        for (function, bars) in functions {
            owned.add_function(config, *function, *bars);
        }
        Self { owned, ..Self::default() }
    }

    fn dword(&self, at: u64) -> u32 {
        (0..4).fold(0, |v, i| {
            v | u32::from(self.registers.get(&(at + i)).copied().unwrap_or(0)) << (8 * i)
        })
    }

    fn set_register(&mut self, at: u64, width: Width, value: u64) {
        for i in 0..u64::from(width.bytes()) {
            self.registers.insert(at + i, (value >> (8 * i)) as u8);
        }
    }
}

impl Machine for Recorder {
    fn tsc(&self) -> u64 {
        0
    }
    fn tsc_khz(&self) -> u64 {
        1
    }
    fn apic_timer_hz(&self) -> Option<u64> {
        None
    }
    fn unix_time(&self) -> u64 {
        0
    }
    fn cpuid(&self, _: u32, _: u32) -> CpuidResult {
        CpuidResult::default()
    }
    fn read_msr(&mut self, _: u32) -> Option<u64> {
        None
    }
    fn write_msr(&mut self, _: u32, _: u64) -> bool {
        false
    }
    fn write_xcr0(&mut self, _: u64) -> bool {
        false
    }
    fn set_stand_in(&mut self, _: usize, _: Option<Gpa>) -> bool {
        false
    }
    fn with_stand_in(&mut self, _: usize, _: impl FnOnce(&mut [u8; 4096])) {}
    fn pit_write(&mut self, _: PitRegister, _: u8) {
        panic!("the bus has no business with the PIT")
    }
    fn part_read(&mut self, part: Part, offset: u64, width: Width) -> u64 {
        let at = self.owned.register(part, offset, width).unwrap();
        let byte = |i| self.registers.get(&(at.as_u64() + i)).copied().unwrap_or(0);
        (0..u64::from(width.bytes())).fold(0, |v, i| v | u64::from(byte(i)) << (8 * i))
    }
    fn part_write(&mut self, part: Part, offset: u64, width: Width, value: u64) {
        let at = self.owned.register(part, offset, width).unwrap();
        self.set_register(at.as_u64(), width, value);
    }
    fn set_msix_entry(&mut self, function: Bdf, index: u16, message: Option<MsiMessage>) {
        let at = self.owned.msix_entry(function, index).unwrap();
        for (offset, value) in entry_writes(message) {
            self.set_register(at.as_u64() + offset, Width::Dword, value.into());
        }
    }
    fn self_ipi(&mut self, _: Vector) {}
    fn machine_check(&mut self) -> MachineCheck {
        MachineCheck::NotHere
    }
    fn write_back_caches(&mut self) {}
    fn eoi(&mut self) {}
    fn send_ipi(&mut self, _: usize, _: Vector) {}
    fn ring(&mut self, to: ApicId, vector: Vector) {
        self.rung.push((to, vector));
    }
    fn request(&mut self, _: usize, _: arch::machine::CpuRequest) {}
    fn have_exit(&mut self, _: usize) {}
    fn route(
        &mut self,
        line: InterruptLine,
        target: Option<InterruptTarget>,
    ) -> Result<MsiMessage, RouteRefused> {
        self.routes.push((line, target));
        let InterruptLine::Message { index, .. } = line else {
            return Err(RouteRefused("not a message"));
        };
        Ok(MsiMessage { address: 0xfee0_0010 | u64::from(index) << 5, data: 0 })
    }
    fn map(&mut self, gpa: Gpa, part: Part, offset: u64, length: u64) {
        let hpa = self.owned.pages(part, offset, length).unwrap();
        assert!(gpa.is_aligned(4096) && hpa.is_aligned(4096));
        for offset in (0..length).step_by(4096) {
            let before = self.mapped.insert(gpa.as_u64() + offset, hpa.as_u64() + offset);
            assert_eq!(before, None, "mapped twice");
        }
    }
    fn unmap(&mut self, gpa: Gpa, length: u64) {
        for offset in (0..length).step_by(4096) {
            assert!(self.mapped.remove(&(gpa.as_u64() + offset)).is_some(), "was not mapped");
        }
    }
    fn set_shadow_page(&mut self, _: usize, _: Option<Gpa>) {}
    fn with_shadow_page(&mut self, _: usize, _: impl FnOnce(&arch::machine::SharedPage)) {
        panic!("the bus has no business with shadow pages")
    }
    fn vector_register(&self, _: u8) -> [u8; 16] {
        [0; 16]
    }
    fn console_write(&mut self, _: u8) {}
    fn console_read(&mut self) -> Option<u8> {
        None
    }
    fn log(&mut self, line: fmt::Arguments<'_>) {
        self.log.push(line.to_string());
    }
}

/// A machine with its bus; CPU n of the guest is physical CPU n + 2, and there are two.
struct World {
    machine: Recorder,
    config: Space,
    bus: VirtualBus,
    grants: Vec<(Vector, ApicId)>,
}

fn machine() -> Space {
    let mut config = Space::default();
    // NVMe-like: 16 KiB BAR at 0 (64 bit) with an MSI-X table of 4 at 0x2000; a 256-byte BAR at 2.
    let nvme = [
        (0x10, BAR as u32 | 4, 0xffff_c000),
        (0x14, 0, u32::MAX),
        (0x18, SMALL_BAR as u32, 0xffff_ff00),
        (0x34, 0x40, 0),
        (0x40, 0x0003_0011, 0xc000_0000),
        (0x44, 0x2000, 0),
        (0x48, 0x3000, 0),
    ];
    config.device(NVME, 0x010802, &nvme);
    // A NIC behind a bridge, with 64-bit MSI and a BAR that lies where this guest has RAM.
    let nic = [
        (0x10, 0x4000_0000, 0xfffe_0000),
        (0x34, 0x50, 0),
        // Enabled by the firmware.
        (0x50, 0x0081_0005, 0x0071_0000),
        (0x54, 0, u32::MAX),
        (0x58, 0, u32::MAX),
        (0x5c, 0, 0xffff),
    ];
    config.device(NIC, 0x020000, &nic);
    config.device(OTHER, 0x020000, &[]);
    config.device(IDE, 0x010180, &[(0x20, 0xc001, 0xfff0)]);
    config
}

/// The functions with the BARs that they have now.
fn sized(config: &mut Space, functions: &[Bdf]) -> Vec<(Bdf, [Option<Bar>; 6])> {
    functions.iter().map(|bdf| (*bdf, pci::bar::size_bars(config, *bdf, 6))).collect()
}

impl World {
    fn new() -> Self {
        let config = machine();
        let windows = vec![
            GpaRange::between(0x8000_0000, 0xe000_0000),
            GpaRange::between(0xf000_0000, 0xfec0_0000),
            GpaRange::between(1 << 32, 1 << 40),
        ];
        let ecam = GpaRange::between(ECAM, ECAM + (1 << 28));
        let functions = sized(&mut config.clone(), &[NVME, NIC, IDE]);
        let bus = VirtualBus::new(&config, &functions, Some(ecam), windows).unwrap();
        let machine = Recorder::of(&config, &functions);
        let mut world = Self { machine, config, bus, grants: Vec::new() };
        world.with(|bus, host| bus.attach(host));
        world
    }

    fn with<R>(
        &mut self,
        run: impl FnOnce(&mut VirtualBus, &mut Host<'_, Recorder, Space>) -> R,
    ) -> R {
        let Self { machine, config, bus, grants } = self;
        let mut host = Host { machine, config };
        let result = run(bus, &mut host);
        while let Some(wanted) = bus.next_wanted(&mut host) {
            let (id, logical) = (wanted.interrupt.destination, wanted.interrupt.logical);
            let own = id <= 1 && !logical;
            let target = own.then(|| wanted.interrupt.target(ApicId(u32::from(id) + 2)));
            grants.extend(target.map(|target| (target.vector, target.destination)));
            bus.program(&mut host, &wanted, target);
        }
        result
    }

    fn read(&mut self, gpa: u64, width: Width) -> Option<u64> {
        self.with(|bus, host| bus.mmio_read(host, Gpa::new(gpa), width))
    }

    fn write(&mut self, gpa: u64, width: Width, value: u64) {
        assert!(self.with(|bus, host| bus.mmio_write(host, Gpa::new(gpa), width, value)));
    }

    fn ecam(bdf: Bdf, offset: u16) -> u64 {
        ECAM + (u64::from(bdf.requester_id()) << 12) + u64::from(offset)
    }

    fn set_address(&mut self, bdf: Bdf, offset: u16) {
        let address = 1 << 31 | u32::from(bdf.requester_id()) << 8 | u32::from(offset & 0xfc);
        assert!(self.with(|bus, host| bus.port_write(host, 0xcf8, Width::Dword, address)));
    }

    fn mapped(&self) -> Vec<(u64, u64)> {
        self.machine.mapped.iter().map(|(g, h)| (*g, *h)).collect()
    }
}

/// The guest's place for [`NIC`].
const NIC_PLACE: Bdf = Bdf::new(0, 2, 0);
/// The guest's place for [`IDE`].
const IDE_PLACE: Bdf = Bdf::new(0, 1, 0);

#[test]
fn the_guest_sees_its_host_bridge_and_its_functions_only() {
    let mut world = World::new();
    let mut found = Vec::new();
    for id in 0..=u16::MAX {
        let bdf = Bdf::from_requester_id(id);
        if world.read(World::ecam(bdf, 0), Width::Dword) != Some(0xffff_ffff) {
            found.push(bdf);
        }
    }
    assert_eq!(found, [Bdf::new(0, 0, 0), IDE_PLACE, NIC_PLACE, NVME]);
    assert_eq!(world.read(World::ecam(Bdf::new(0, 0, 0), 8), Width::Dword), Some(0x0600_0000));
    assert_eq!(world.read(World::ecam(Bdf::new(0, 0, 0), 0x100), Width::Dword), Some(0xffff_ffff));
    let before = world.config.clone();
    world.write(World::ecam(OTHER, 4), Width::Word, 7);
    assert_eq!(world.config.0, before.0);
}

#[test]
fn attached_functions_are_quiet_and_decode() {
    let world = World::new();
    assert_eq!(world.config.read(NVME, 4, Width::Word), 0x402);
    assert_eq!(world.config.read(NIC, 4, Width::Word), 0x402);
    assert_eq!(world.config.read(IDE, 4, Width::Word), 0x001, "its ISA lines stay on");
    assert_eq!(world.config.read(NIC, 0x52, Width::Word), 0x80, "MSI is off");
    for index in 0..4 {
        assert_eq!(world.machine.dword(BAR + 0x200c + 16 * index), 1);
    }
}

#[test]
fn bars_are_mapped_without_the_vector_table() {
    let world = World::new();
    let expected = [0, 0x1000, 0x3000].map(|o| (BAR + o, BAR + o));
    assert_eq!(world.mapped(), expected);
}

#[test]
fn a_bar_that_moves_is_mapped_anew_and_only_inside_the_windows() {
    let mut world = World::new();
    let nic_bar = World::ecam(NIC_PLACE, 0x10);
    assert_eq!(world.read(nic_bar, Width::Dword), Some(0), "its BAR lies in the guest's RAM");
    world.write(nic_bar, Width::Dword, 0x9000_0000);
    assert_eq!(world.machine.mapped.len(), 3 + 32);
    assert_eq!(world.machine.mapped.get(&0x9001_f000), Some(&0x4001_f000));
    world.write(nic_bar, Width::Dword, 0x1000_0000);
    assert_eq!(world.machine.mapped.len(), 3);
    world.write(World::ecam(NVME, 0x14), Width::Dword, 2);
    assert_eq!(world.mapped(), [0, 0x1000, 0x3000].map(|o| (2 << 32 | BAR | o, BAR + o)));
    world.write(World::ecam(NVME, 4), Width::Word, 0);
    assert_eq!(world.mapped(), []);
    assert_eq!(world.read(BAR + 0x2000, Width::Dword), None);
    assert_eq!(world.config.read(NVME, 0x10, Width::Dword), BAR as u32 | 4);
}

#[test]
fn bars_in_one_place_are_mapped_once_and_sorted_out_when_one_leaves() {
    let mut world = World::new();
    let nic_bar = World::ecam(NIC_PLACE, 0x10);
    world.write(nic_bar, Width::Dword, 0xfebc_0000);
    assert_eq!(world.machine.mapped.len(), 3, "the NVMe was there first");
    world.write(World::ecam(NVME, 0x14), Width::Dword, 2);
    assert_eq!(world.machine.mapped.len(), 3 + 31 + 1);
    assert_eq!(world.machine.mapped.get(&BAR), Some(&0x4001_0000));
}

#[test]
fn bus_mastering_follows_the_guest_and_decoding_does_not() {
    let mut world = World::new();
    world.write(World::ecam(NVME, 4), Width::Word, 4);
    assert_eq!(world.config.read(NVME, 4, Width::Word), 0x406);
    world.with(|bus, host| bus.detach(host));
    assert_eq!(world.config.read(NVME, 4, Width::Word), 0x400);
    assert_eq!(world.mapped(), []);
}

#[test]
fn intx_is_on_while_the_guest_wants_it_and_only_where_a_line_is_wired() {
    let mut world = World::new();
    let wire = |world: &mut World, function| world.bus.wire(&world.config, function, 21);
    assert_eq!(wire(&mut world, NIC), Err(BusError::NoPin(NIC)));
    assert_eq!(wire(&mut world, OTHER), Err(BusError::NoPin(OTHER)));
    world.config.0.get_mut(&NIC).unwrap().0[0x3d] = 1;
    assert_eq!(wire(&mut world, NIC), Ok(()));
    world.with(|bus, host| bus.attach(host));
    let real = |world: &World, function| world.config.read(function, 4, Width::Word);
    assert_eq!((real(&world, NIC), real(&world, NVME)), (0x002, 0x402));
    assert_eq!(world.read(World::ecam(NIC_PLACE, 0x3c), Width::Word), Some(0x0115));
    for (wanted, command) in [(0x406, 0x406), (0x006, 0x006)] {
        world.write(World::ecam(NIC_PLACE, 4), Width::Word, wanted);
        assert_eq!(real(&world, NIC), command);
    }
    world.with(|bus, host| bus.detach(host));
    assert_eq!(real(&world, NIC), 0x400);
}

#[test]
fn a_device_that_moves_its_bar_is_mapped_where_it_was_recorded() {
    let mut config = machine();
    let recorded = sized(&mut config, &[NVME]);
    config.0.get_mut(&NVME).unwrap().0[0x10..0x14].copy_from_slice(&0x0010_0000_u32.to_le_bytes());
    let windows = vec![GpaRange::between(0xf000_0000, 0xfec0_0000)];
    let bus = VirtualBus::new(&config, &recorded, None, windows).unwrap();
    let machine = Recorder::of(&config, &recorded);
    let mut world = World { machine, config, bus, grants: Vec::new() };
    world.with(|bus, host| bus.attach(host));
    let mapped = world.mapped();
    assert!(!mapped.is_empty() && mapped.iter().all(|(_, hpa)| *hpa >= BAR), "{mapped:x?}");
}

#[test]
fn a_function_that_can_raise_no_interrupt_is_said_to_be_so() {
    let mut config = machine();
    config.device(OTHER, 0x020000, &[(0x3c, 0x0100, 0)]);
    let functions = sized(&mut config.clone(), &[NVME, IDE, OTHER]);
    let bus = VirtualBus::new(&config, &functions, None, Vec::new()).unwrap();
    let machine = Recorder::of(&config, &functions);
    let mut world = World { machine, config, bus, grants: Vec::new() };
    world.with(|bus, host| bus.attach(host));
    let mute: Vec<&String> =
        world.machine.log.iter().filter(|line| line.contains("can raise no interrupt")).collect();
    assert!(mute.len() == 1 && mute[0].starts_with("00:06.0: "), "{:?}", world.machine.log);
}

#[test]
fn a_vector_is_granted_and_routed_when_it_can_first_fire() {
    let mut world = World::new();
    let entry = BAR + 0x2010;
    world.write(World::ecam(NVME, 0x42), Width::Word, 0xc000);
    world.write(entry, Width::Qword, 0xfee0_1000);
    world.write(entry + 8, Width::Dword, 0x41);
    world.write(entry + 12, Width::Dword, 0);
    assert_eq!(world.grants, []);
    assert_eq!(world.machine.dword(entry + 12), 1);
    world.write(World::ecam(NVME, 0x42), Width::Word, 0x8000);
    assert_eq!(world.grants, [(Vector(0x41), ApicId(3))]);
    let line = InterruptLine::Message { function: NVME, index: 1 };
    assert_eq!(world.machine.routes.len(), 1);
    assert_eq!(world.machine.routes[0].0, line);
    assert_eq!([0, 4, 8, 12].map(|o| world.machine.dword(entry + o)), [0xfee0_0030, 0, 0, 0]);
    assert_eq!(world.config.read(NVME, 0x42, Width::Word), 0x8003);
    assert_eq!(world.read(entry, Width::Qword), Some(0xfee0_1000), "the guest sees its own");
    world.write(entry + 12, Width::Dword, 1);
    assert_eq!(world.machine.dword(entry + 12), 1);
}

#[test]
fn a_message_that_is_refused_stays_masked_and_is_said_few_times() {
    let mut world = World::new();
    world.write(World::ecam(NVME, 0x42), Width::Word, 0x8000);
    for (address, data) in [(0xfee0_0000, 0x241), (0x1000, 0x41), (0xfee0_7000, 0x41)] {
        world.write(BAR + 0x2000, Width::Qword, address);
        world.write(BAR + 0x2008, Width::Dword, data);
        world.write(BAR + 0x200c, Width::Dword, 0);
        assert_eq!(world.machine.dword(BAR + 0x200c), 1);
        world.write(BAR + 0x200c, Width::Dword, 1);
    }
    assert_eq!(world.grants, []);
    assert_eq!(world.machine.log.len(), 3);
    for _ in 0..20 {
        world.write(BAR + 0x200c, Width::Dword, 0);
    }
    assert_eq!(world.machine.log.len(), 8);
}

#[test]
fn msi_is_routed_when_enabled_and_again_when_it_moves() {
    let mut world = World::new();
    let msi = World::ecam(NIC_PLACE, 0x50);
    world.write(msi + 4, Width::Dword, 0xfee0_0000);
    world.write(msi + 12, Width::Word, 0x51);
    assert_eq!(world.grants, []);
    world.write(msi + 2, Width::Word, 0x81);
    assert_eq!(world.grants, [(Vector(0x51), ApicId(2))]);
    assert_eq!(world.config.read(NIC, 0x54, Width::Dword), 0xfee0_0010);
    assert_eq!(world.config.read(NIC, 0x52, Width::Word), 0x81);
    world.write(msi + 4, Width::Dword, 0xfee0_1000);
    assert_eq!(world.grants[1], (Vector(0x51), ApicId(3)));
    world.write(msi + 2, Width::Word, 0x80);
    assert_eq!(world.config.read(NIC, 0x52, Width::Word), 0x80);
}

#[test]
fn neighbours_of_the_table_and_small_bars_are_reached_by_trapping() {
    let mut world = World::new();
    world.write(BAR + 0x2040, Width::Dword, 0x1234_5678);
    assert_eq!(world.machine.dword(BAR + 0x2040), 0x1234_5678);
    assert_eq!(world.read(BAR + 0x2041, Width::Word), Some(0x3456));
    world.write(SMALL_BAR + 0xf8, Width::Qword, 5);
    assert_eq!(world.machine.dword(SMALL_BAR + 0xf8), 5);
    assert_eq!(world.read(SMALL_BAR + 0x100, Width::Byte), None, "a neighbour's register");
    assert_eq!(world.read(SMALL_BAR - 1, Width::Byte), None);
}

#[test]
fn ports_of_others_are_not_the_buss() {
    let mut world = World::new();
    for (port, width) in [(0xcf9, Width::Byte), (0xcf8, Width::Word), (0xcfb, Width::Byte)] {
        assert_eq!(world.bus.port_read(&world.config, port, width), None);
        assert!(!world.with(|bus, host| bus.port_write(host, port, width, 6)));
    }
    assert_eq!(world.bus.port_read(&world.config, 0xcfc, Width::Dword), Some(u32::MAX));
    world.set_address(NVME, 0);
    assert_eq!(world.bus.port_read(&world.config, 0xcf8, Width::Dword), Some(0x8000_2000));
}

#[test]
fn compatibility_ide_reports_its_ports_and_lines() {
    let world = World::new();
    let lines: Vec<_> =
        world.bus.legacy_ide().map(|c| (c.command.first, c.control.first, c.gsi)).collect();
    assert_eq!(lines, [(0x1f0, 0x3f6, 14), (0x170, 0x376, 15)]);
    let ports: Vec<_> = world.bus.port_ranges().map(|r| (r.first, r.last)).collect();
    assert_eq!(ports, [(0xc000, 0xc00f)]);
    let functions: Vec<_> = world.bus.functions().collect();
    assert_eq!(functions, [(NVME, NVME), (NIC, NIC_PLACE), (IDE, IDE_PLACE)]);
}

#[test]
fn what_cannot_be_assigned_is_named() {
    let mut config = machine();
    let refused = |config: &Space, bdf| {
        VirtualBus::new(config, &sized(&mut config.clone(), &[NVME, bdf]), None, Vec::new())
            .unwrap_err()
    };
    // A PCI-to-PCI bridge, a host bridge, an ISA bridge, an IOMMU: header type 1 or not.
    for (class, header) in [(0x060400, 1), (0x060000, 0), (0x060100, 0), (0x080600, 0)] {
        let machines_own = Bdf::new(0, 9, 0);
        config.device(machines_own, class, &[(0x0c, header << 16, 0)]);
        let error = refused(&config, machines_own);
        assert_eq!(error, BusError::NotADevice(machines_own), "{class:#x}");
    }
    let absent = Bdf::new(0, 10, 0);
    assert_eq!(refused(&config, absent), BusError::Absent(absent));
}

proptest! {
    #[test]
    fn ports_and_ecam_show_the_same(
        place in prop_oneof![Just(NVME), Just(NIC_PLACE), Just(IDE_PLACE), Just(OTHER), Just(HOST_BRIDGE)],
        offset in 0u16..256,
        width in prop_oneof![Just(Width::Byte), Just(Width::Word), Just(Width::Dword)],
        write: Option<u32>,
    ) {
        let offset = offset & !(u16::from(width.bytes()) - 1);
        let (mut by_port, mut by_ecam) = (World::new(), World::new());
        by_port.set_address(place, offset);
        let port = 0xcfc + (offset & 3);
        if let Some(value) = write {
            by_port.with(|bus, host| bus.port_write(host, port, width, value));
            by_ecam.write(World::ecam(place, offset), width, value.into());
        }
        prop_assert_eq!(&by_port.config.0, &by_ecam.config.0);
        prop_assert_eq!(&by_port.machine.mapped, &by_ecam.machine.mapped);
        let seen = by_port.bus.port_read(&by_port.config, port, width).map(u64::from);
        prop_assert_eq!(seen, by_ecam.read(World::ecam(place, offset), width));
    }

    /// The recorder panics when a page is mapped twice or one is unmapped that was not mapped.
    #[test]
    fn any_config_writes_keep_mappings_whole_and_other_functions_untouched(
        accesses in proptest::collection::vec(
            (0usize..3, prop_oneof![0u16..0x100, 4u16..0x28], prop_oneof![Just(1u8), Just(2), Just(4)],
             prop_oneof![any::<u32>(), Just(0), Just(0x9000_0002), Just(u32::MAX)]), 1..60),
    ) {
        let mut world = World::new();
        let others = world.config.0[&OTHER].clone();
        for (place, offset, bytes, value) in accesses {
            let place = [NVME, NIC_PLACE, IDE_PLACE][place];
            world.write(World::ecam(place, offset), Width::from_bytes(bytes).unwrap(), value.into());
        }
        prop_assert_eq!(&world.config.0[&OTHER], &others);
        prop_assert_eq!(world.config.read(NVME, 0x10, Width::Dword), BAR as u32 | 4);
        let table = world.mapped().iter().any(|(_, hpa)| *hpa == BAR + 0x2000);
        prop_assert!(!table, "the table's page is never mapped");
        for (gpa, _) in world.mapped() {
            prop_assert!(gpa >= 0x8000_0000 && !(ECAM..ECAM + (1 << 28)).contains(&gpa));
        }
    }
}
