//! The driver against the modelled unit.

use super::model::{CAP, ECAP, Model, Ram};
use super::registers::command;
use super::*;
use crate::dmar::tests::{drhd, scope, table};
use arch::interrupt::{ApicId, DeliveryMode, TriggerMode, Vector};
use core::ops::RangeInclusive;

const NVME: Bdf = Bdf::new(0, 4, 0);
const NIC: Bdf = Bdf::new(0, 5, 0);
const GIB: u64 = 1 << 30;

const TARGET: InterruptTarget = InterruptTarget {
    vector: Vector(0x31),
    destination: ApicId(0x1_0002),
    trigger: TriggerMode::Edge,
    delivery: DeliveryMode::Fixed,
};

fn no_bridges(_: Bdf) -> Option<RangeInclusive<u8>> {
    None
}

/// Two units of segment 0 (the NIC has its own) and one of segment 1.
fn firmware_table() -> &'static [u8] {
    let io_apic = scope(3, 2, 0xff, &[(0, 0)]);
    let units = [
        drhd(false, 0, 0x1000, &[scope(1, 0, 0, &[(5, 0)])]),
        drhd(true, 0, 0x2000, &[io_apic]),
        drhd(true, 1, 0x3000, &[]),
    ];
    table(1, &units).leak()
}

struct Machine {
    ram: Ram,
    units: [Model; 3],
    vtd: Result<VtD<'static, Ram, Model>, IommuError>,
}

/// Brings a machine up whose units `prepare` has changed before.
fn machine(prepare: impl Fn(&mut model::State)) -> Machine {
    let ram = Ram::new();
    let units = [Model::new(&ram), Model::new(&ram), Model::new(&ram)];
    units.iter().for_each(|unit| prepare(&mut unit.state.borrow_mut()));
    units.iter().for_each(Model::start);
    let dmar = Dmar::parse(firmware_table()).unwrap();
    let window = |base: Hpa| units[base.as_u64() as usize / 0x1000 - 1].clone();
    let vtd = VtD::with_registers(dmar, &no_bridges, ram.clone(), window);
    Machine { ram, units, vtd }
}

fn refusal(prepare: impl Fn(&mut model::State)) -> String {
    machine(prepare).vtd.err().unwrap().to_string()
}

#[test]
fn after_bring_up_nothing_reaches_memory_or_a_cpu() {
    let machine = machine(|unit| unit.protected = 1 << 31 | 1);
    machine.vtd.unwrap();
    for unit in &machine.units {
        let expected = [command::SRTP, command::QIE, command::SIRTP, command::TE, command::IRE];
        assert_eq!(unit.state.borrow().commands, expected);
        assert_eq!(unit.state.borrow().protected, 0);
        assert_eq!(unit.state.borrow().fault_control, 1 << 31, "IM: no fault event interrupt");
        for id in [0, 0x20, 0xff00, 0xffff] {
            let function = Bdf::from_requester_id(id);
            assert_eq!(unit.dma(function, 0x1000), Err(2));
            assert_eq!(unit.interrupt(function, 0xfee0_0000, 0x31), Err(0x25));
            assert_eq!(unit.interrupt(function, 0xfee0_0010, 0), Err(0x22));
        }
    }
}

#[test]
fn what_the_firmware_left_on_is_switched_off_first() {
    let all = command::TE | command::QIE | command::IRE | command::CFI;
    let machine = machine(|unit| unit.status = all);
    // The model refuses new tables while the old ones are in use.
    machine.vtd.unwrap();
    assert_eq!(machine.units[0].state.borrow().status & command::CFI, 0);
}

#[test]
fn what_the_unit_kept_from_the_time_before_is_forgotten() {
    let Machine { units, vtd, .. } = machine(|unit| unit.remembers(NVME));
    let vtd = vtd.unwrap();
    for unit in &units {
        assert_eq!(unit.dma(NVME, 0x1000), Err(2));
        let message = vtd.remap_message(RemapIndex(0));
        assert_eq!(unit.interrupt(NVME, message.address, 0), Err(0x22));
    }
}

#[test]
fn the_firmwares_queue_is_empty_before_it_is_switched_off() {
    // The model refuses to be switched off while a descriptor is under way.
    assert!(machine(model::State::is_at_work).vtd.is_ok());
}

#[test]
fn a_unit_that_holds_writes_back_is_told_to_look() {
    let Machine { units, vtd, .. } = machine(model::State::needs_write_buffer_flushing);
    let mut vtd = vtd.unwrap();
    let domain = vtd.create_domain(&[NVME]).unwrap();
    vtd.attach(NVME, domain).unwrap();
    vtd.map(domain, Iova::new(0), Hpa::new(GIB), 0x4000).unwrap();
    assert_eq!(units[1].dma(NVME, 0x1000), Ok(GIB + 0x1000));
    let index = vtd.allocate_remap(InterruptSource::Device(NVME), 1).unwrap();
    vtd.set_remap(index, Some(TARGET)).unwrap();
    let address = vtd.remap_message(index).address;
    assert_eq!(units[1].interrupt(NVME, address, 0), Ok((0x31, 0x1_0002, false)));
    vtd.detach(NVME).unwrap();
    assert_eq!(units[1].dma(NVME, 0x1000), Err(2));
}

/// Another function behind the NVMe controller's unit.
const NEIGHBOUR: Bdf = Bdf::new(0, 6, 0);

/// A unit may read an entry between any two writes of the driver.
#[test]
fn between_two_writes_a_function_has_its_old_domain_its_new_one_or_none() {
    let Machine { units, vtd, .. } = machine(|_| {});
    let mut vtd = vtd.unwrap();
    let first = vtd.create_domain(&[NVME]).unwrap();
    let second = vtd.create_domain(&[NVME, NEIGHBOUR]).unwrap();
    vtd.map(first, Iova::new(0), Hpa::new(GIB), 0x4000).unwrap();
    vtd.map(second, Iova::new(0), Hpa::new(2 * GIB), 0x4000).unwrap();
    vtd.attach(NEIGHBOUR, second).unwrap();
    let unit = units[1].clone();
    units[1].watch(move || {
        unit.forget();
        let seen = unit.dma(NVME, 0x1000);
        let allowed = [Err(2), Ok(GIB + 0x1000), Ok(2 * GIB + 0x1000)];
        assert!(allowed.contains(&seen), "{seen:x?}");
        // What the unit has kept of the one is under the other's domain where an entry is half new.
        assert_eq!(unit.dma(NEIGHBOUR, 0x1000), Ok(2 * GIB + 0x1000));
    });
    vtd.attach(NVME, first).unwrap();
    vtd.attach(NVME, second).unwrap();
    vtd.detach(NVME).unwrap();
}

#[test]
fn no_address_is_mapped_that_a_unit_cannot_carry() {
    // MGAW: 39 bits, though the tables have four levels.
    let narrow = CAP & !(0x3f << 16) | 38 << 16;
    let mut vtd = machine(|unit| unit.cap = narrow).vtd.unwrap();
    let domain = vtd.create_domain(&[NVME]).unwrap();
    let wide = 1 << 39;
    let map = |vtd: &mut VtD<'_, _, _>, iova| vtd.map(domain, Iova::new(iova), Hpa::new(0), 0x1000);
    assert_eq!(map(&mut vtd, wide), Err(IommuError::AddressTooWide(wide)));
    assert_eq!(map(&mut vtd, wide - 0x1000), Ok(()));
}

#[test]
fn a_slow_unit_is_waited_for_each_time() {
    let Machine { units, vtd, .. } = machine(|unit| unit.slow = 3);
    let mut vtd = vtd.unwrap();
    let domain = vtd.create_domain(&[NVME]).unwrap();
    vtd.map(domain, Iova::new(0), Hpa::new(GIB), 0x4000).unwrap();
    for _ in 0..3 {
        vtd.attach(NVME, domain).unwrap();
        assert_eq!(units[1].dma(NVME, 0x1000), Ok(GIB + 0x1000));
        vtd.detach(NVME).unwrap();
        assert_eq!(units[1].dma(NVME, 0x1000), Err(2));
    }
}

#[test]
fn errors_of_the_firmwares_own_queue_do_not_stop_ours() {
    let machine = machine(|unit| {
        unit.status = command::QIE;
        // It stopped before its tail, and stays there.
        unit.head = 16;
        unit.fault_status = 1 << 4 | 1 << 5 | 1 << 6;
    });
    machine.vtd.unwrap();
    assert!(machine.units.iter().all(|unit| unit.state.borrow().fault_status == 0));
}

#[test]
fn units_are_off_again_where_one_of_them_cannot_be_used() {
    let ram = Ram::new();
    let units = [Model::new(&ram), Model::new(&ram), Model::new(&ram)];
    units[0].state.borrow_mut().status = command::TE | command::QIE;
    units[2].state.borrow_mut().deaf = true;
    let dmar = Dmar::parse(firmware_table()).unwrap();
    let window = |base: Hpa| units[base.as_u64() as usize / 0x1000 - 1].clone();
    assert!(VtD::with_registers(dmar, &no_bridges, ram, window).is_err());
    for unit in &units {
        assert_eq!(unit.state.borrow().status & command::LASTING, 0);
    }
}

#[test]
fn as_many_units_as_the_table_names_are_brought_up() {
    let ram = Ram::new();
    let server = nexit_cases::Case::named("eighteen-units.dmar").table("DMAR").leak();
    let dmar = Dmar::parse(server).unwrap();
    let units: Vec<(Hpa, Model)> =
        dmar.units().map(|drhd| (drhd.registers, Model::new(&ram))).collect();
    let window = |base: Hpa| units.iter().find(|unit| unit.0 == base).unwrap().1.clone();
    VtD::with_registers(dmar, &no_bridges, ram, window).unwrap();
    assert_eq!(units.len(), 18);
    for (_, unit) in &units {
        assert_ne!(unit.state.borrow().status & command::TE, 0);
    }
}

#[test]
fn without_interrupt_remapping_there_is_no_iommu() {
    let table = table(0, &[drhd(true, 0, 0x1000, &[])]).leak();
    let ram = Ram::new();
    let model = Model::new(&ram);
    let dmar = Dmar::parse(table).unwrap();
    let vtd = VtD::with_registers(dmar, &no_bridges, ram, |_| model.clone());
    assert!(vtd.err().unwrap().to_string().contains("interrupt remapping, says the firmware"));
}

#[test]
fn a_unit_without_large_pages_costs_only_those_behind_it() {
    let ram = Ram::new();
    let units = [Model::new(&ram), Model::new(&ram), Model::new(&ram)];
    // The NIC's.
    units[0].state.borrow_mut().cap = CAP & !(3 << 34);
    let dmar = Dmar::parse(firmware_table()).unwrap();
    let window = |base: Hpa| units[base.as_u64() as usize / 0x1000 - 1].clone();
    let mut vtd = VtD::with_registers(dmar, &no_bridges, ram, window).unwrap();
    let large = vtd.create_domain(&[NVME]).unwrap();
    let small = vtd.create_domain(&[NVME, NIC]).unwrap();
    for domain in [large, small] {
        vtd.map(domain, Iova::new(0), Hpa::new(GIB), 8 << 20).unwrap();
    }
    let largest = |vtd: &VtD<'_, Ram, Model>, id| vtd.domain(id).unwrap().format().largest;
    assert_eq!((largest(&vtd, large), largest(&vtd, small)), (PageSize::Size2M, PageSize::Size4K));
    vtd.attach(NVME, large).unwrap();
    let missing = Err(IommuError::Missing("pages as large as those of the domain"));
    assert_eq!(vtd.attach(NIC, large), missing);
    vtd.attach(NIC, small).unwrap();
    assert_eq!(units[1].dma(NVME, 0x40_0123), Ok(GIB + 0x40_0123));
    assert_eq!(units[0].dma(NIC, 0x40_0123), Ok(GIB + 0x40_0123));
}

#[test]
fn a_function_reaches_its_domain_and_nothing_else() {
    for caching_mode in [0, 1 << 7] {
        let Machine { units, vtd, .. } = machine(|unit| unit.cap = CAP | caching_mode);
        let mut vtd = vtd.unwrap();
        let first = vtd.create_domain(&[NVME, NIC]).unwrap();
        let second = vtd.create_domain(&[NVME, NIC]).unwrap();
        assert_ne!(first, second);
        assert_eq!(units[1].dma(NVME, 0x5000), Err(2));
        vtd.attach(NVME, first).unwrap();
        assert_eq!(units[1].dma(NVME, 0x5000), Err(5));
        vtd.map(first, Iova::new(0), Hpa::new(GIB), GIB).unwrap();
        vtd.map(second, Iova::new(0), Hpa::new(2 * GIB), 0x4000).unwrap();
        assert_eq!(units[1].dma(NVME, 0x5678), Ok(GIB + 0x5678));
        assert_eq!(units[1].dma(NVME, GIB), Err(5));
        assert_eq!(units[1].dma(NIC, 0x5678), Err(2));
        vtd.attach(NIC, second).unwrap();
        assert_eq!(units[0].dma(NIC, 0x3008), Ok(2 * GIB + 0x3008));
        assert_eq!(units[0].dma(NIC, 0x4000), Err(5));
        vtd.attach(NVME, second).unwrap();
        assert_eq!(units[1].dma(NVME, 0x1000), Ok(2 * GIB + 0x1000));
        vtd.detach(NVME).unwrap();
        assert_eq!(units[1].dma(NVME, 0x1000), Err(2));
        assert_eq!(units[2].dma(NIC, 0x1000), Err(2), "a unit of another segment");
    }
}

#[test]
fn an_entry_serves_its_source_until_it_is_taken_away() {
    for caching_mode in [0, 1 << 7] {
        let Machine { units, vtd, .. } = machine(|unit| unit.cap = CAP | caching_mode);
        let mut vtd = vtd.unwrap();
        let first = vtd.allocate_remap(InterruptSource::Device(NIC), 2).unwrap();
        let next = vtd.allocate_remap(InterruptSource::Device(NVME), 1).unwrap();
        let second = RemapIndex(first.0 + 1);
        assert_eq!(next, RemapIndex(first.0 + 2));
        let message = vtd.remap_message(first);
        let ring = |source, number| units[0].interrupt(source, message.address, number);
        assert_eq!(ring(NIC, 0), Err(0x22));
        vtd.set_remap(first, Some(TARGET)).unwrap();
        let other = InterruptTarget { vector: Vector(0x42), ..TARGET };
        vtd.set_remap(second, Some(other)).unwrap();
        assert_eq!(ring(NIC, 0), Ok((0x31, 0x1_0002, false)));
        assert_eq!(ring(NIC, 1), Ok((0x42, 0x1_0002, false)), "the second of several messages");
        assert_eq!(ring(NVME, 0), Err(0x26));
        vtd.set_remap(first, Some(InterruptTarget { trigger: TriggerMode::Level, ..other }))
            .unwrap();
        assert_eq!(ring(NIC, 0), Ok((0x42, 0x1_0002, true)));
        vtd.set_remap(first, None).unwrap();
        assert_eq!(ring(NIC, 0), Err(0x22));
        assert_eq!(ring(NIC, 1), Ok((0x42, 0x1_0002, false)));
    }
}

/// The NIC's namesake in the other segment.
const FAR_NIC: Bdf = NIC.in_segment(1);

#[test]
fn functions_of_the_same_number_in_two_segments_are_kept_apart() {
    let Machine { units, vtd, .. } = machine(|_| {});
    let mut vtd = vtd.unwrap();
    let near = vtd.create_domain(&[NIC]).unwrap();
    let far = vtd.create_domain(&[FAR_NIC]).unwrap();
    vtd.map(near, Iova::new(0), Hpa::new(GIB), 0x4000).unwrap();
    vtd.map(far, Iova::new(0), Hpa::new(2 * GIB), 0x4000).unwrap();
    vtd.attach(FAR_NIC, far).unwrap();
    assert_eq!(
        (units[0].dma(NIC, 0x1000), units[2].dma(NIC, 0x1000)),
        (Err(2), Ok(2 * GIB + 0x1000))
    );
    vtd.attach(NIC, near).unwrap();
    assert_eq!(units[0].dma(NIC, 0x1000), Ok(GIB + 0x1000));
    vtd.detach(FAR_NIC).unwrap();
    assert_eq!((units[0].dma(NIC, 0x1000), units[2].dma(NIC, 0x1000)), (Ok(GIB + 0x1000), Err(2)));

    let entry = |vtd: &mut VtD<'_, _, _>, function, vector| {
        let index = vtd.allocate_remap(InterruptSource::Device(function), 1).unwrap();
        vtd.set_remap(index, Some(InterruptTarget { vector: Vector(vector), ..TARGET })).unwrap();
        (index, vtd.remap_message(index).address)
    };
    let ((_, near), (index, far)) = (entry(&mut vtd, NIC, 0x41), entry(&mut vtd, FAR_NIC, 0x42));
    assert_eq!(units[0].interrupt(NIC, near, 0), Ok((0x41, 0x1_0002, false)));
    assert_eq!(units[2].interrupt(NIC, far, 0), Ok((0x42, 0x1_0002, false)));
    assert_eq!(vtd.remaps_in_use(), 2);
    vtd.set_remap(index, None).unwrap();
    assert_eq!(units[2].interrupt(NIC, far, 0), Err(0x22), "its unit was told");
    assert!(units[0].interrupt(NIC, near, 0).is_ok());
    let nowhere = NIC.in_segment(2);
    assert_eq!(vtd.attach(nowhere, DomainId(1)), Err(IommuError::NoUnit(nowhere)));
}

#[test]
fn a_fault_names_the_segment() {
    let Machine { units, vtd, .. } = machine(|_| {});
    units[2].state.borrow_mut().records[0] = (0xdead_0000, 1 << 63 | 5 << 32 | 0x28);
    let mut seen = Vec::new();
    vtd.unwrap().poll_faults(&mut |fault| seen.push(fault.source));
    assert_eq!(seen, [FAR_NIC]);
}

#[test]
fn what_is_given_back_serves_nobody_and_is_handed_out_again() {
    let Machine { units, vtd, .. } = machine(|_| {});
    let mut vtd = vtd.unwrap();
    let kept = vtd.create_domain(&[NVME, NIC]).unwrap();
    let gone = vtd.create_domain(&[NVME, NIC]).unwrap();
    vtd.map(kept, Iova::new(0), Hpa::new(GIB), 0x4000).unwrap();
    vtd.map(gone, Iova::new(0), Hpa::new(2 * GIB), 0x4000).unwrap();
    vtd.attach(NVME, kept).unwrap();
    vtd.attach(NIC, gone).unwrap();
    vtd.detach(NIC).unwrap();
    vtd.destroy_domain(gone);
    assert_eq!(units[0].returned(), 4, "a table of each level");
    assert_eq!(units[0].dma(NIC, 0x1000), Err(2));
    assert_eq!(units[1].dma(NVME, 0x1000), Ok(GIB + 0x1000));
    assert_eq!(vtd.attach(NIC, gone), Err(IommuError::UnknownDomain(gone)));
    assert_eq!(vtd.create_domain(&[NVME, NIC]), Ok(gone));
    vtd.attach(NIC, gone).unwrap();
    assert_eq!(units[0].dma(NIC, 0x1000), Err(5), "its new table is empty");

    let first = vtd.allocate_remap(InterruptSource::Device(NIC), 3).unwrap();
    let last = vtd.allocate_remap(InterruptSource::Device(NVME), 2).unwrap();
    assert_eq!(vtd.remaps_in_use(), 5);
    vtd.set_remap(first, Some(TARGET)).unwrap();
    let message = vtd.remap_message(first);
    assert!(units[0].interrupt(NIC, message.address, 0).is_ok());
    vtd.free_remap(first, 3).unwrap();
    assert_eq!((vtd.remaps_in_use(), units[0].interrupt(NIC, message.address, 0)), (2, Err(0x22)));
    assert_eq!(vtd.set_remap(first, Some(TARGET)), Err(IommuError::OutOfRemapEntries));
    let longer = vtd.allocate_remap(InterruptSource::Device(NIC), 4);
    assert_eq!(longer, Ok(RemapIndex(last.0 + 2)), "the hole of three is too small");
    assert_eq!(vtd.allocate_remap(InterruptSource::Device(NIC), 2), Ok(first));
}

#[test]
fn an_io_apic_line_carries_its_requester() {
    let Machine { units, vtd, .. } = machine(|_| {});
    let mut vtd = vtd.unwrap();
    let index = vtd.allocate_remap(InterruptSource::IoApic(2), 1).unwrap();
    vtd.set_remap(index, Some(TARGET)).unwrap();
    let message = vtd.remap_message(index);
    let io_apic = Bdf::new(0xff, 0, 0);
    assert_eq!(units[1].interrupt(io_apic, message.address, 0), Ok((0x31, 0x1_0002, false)));
    let unknown = vtd.allocate_remap(InterruptSource::IoApic(7), 1);
    assert_eq!(unknown, Err(IommuError::UnknownIoApic(7)));
}

#[test]
fn what_a_unit_lacks_is_said() {
    assert!(refusal(|unit| unit.ecap = ECAP & !2).contains("lacks queued invalidation"));
    assert!(refusal(|unit| unit.ecap = ECAP & !8).contains("lacks interrupt remapping"));
    assert!(refusal(|unit| unit.ecap = ECAP & !16).contains("lacks extended interrupt mode"));
    assert!(refusal(|unit| unit.cap = CAP & !(31 << 8)).contains("3 or 4 levels"));
    let absent = refusal(|unit| (unit.cap, unit.ecap) = (u64::MAX, u64::MAX));
    assert!(absent.contains("read as all ones"));
    assert!(refusal(|unit| (unit.cap, unit.ecap) = (0, 0)).contains("all zeroes"));
}

#[test]
fn a_unit_that_does_not_answer_is_given_up() {
    assert!(refusal(|unit| unit.deaf = true).contains("setting the root table pointer"));
    assert!(refusal(|unit| unit.queue_stopped = true).contains("invalidating its caches"));
    let Machine { units, vtd, .. } = machine(|_| {});
    let mut vtd = vtd.unwrap();
    let index = vtd.allocate_remap(InterruptSource::Device(NVME), 1).unwrap();
    units[1].state.borrow_mut().fault_status = 1 << 4;
    let failed = Err(IommuError::TimedOut("invalidating its caches"));
    assert_eq!(vtd.set_remap(index, Some(TARGET)), failed);
    units[1].state.borrow_mut().fault_status = 0;
    assert_eq!(vtd.set_remap(index, Some(TARGET)), failed, "its queue is not trusted any more");
}

#[test]
fn faults_are_handed_over_once() {
    let Machine { units, vtd, .. } = machine(|_| {});
    let mut vtd = vtd.unwrap();
    {
        let mut state = units[1].state.borrow_mut();
        state.records = [(0xdead_0000, 1 << 63 | 5 << 32 | 0x20), (0, 1 << 63 | 2 << 32 | 0x28)];
        state.fault_status = 1;
    }
    let mut seen = Vec::new();
    assert_eq!(vtd.poll_faults(&mut |fault| seen.push((fault.source, fault.reason))), 1);
    assert_eq!(seen, [(NVME, 5), (NIC, 2)]);
    assert_eq!(vtd.poll_faults(&mut |fault| panic!("{fault} again")), 0);
}

#[test]
fn limits_are_errors() {
    // ND = 0: 16 domain identifiers, of which 0 is not used.
    let mut vtd = machine(|unit| unit.cap = CAP & !7).vtd.unwrap();
    let last = (0..15).map(|_| vtd.create_domain(&[NVME, NIC]).unwrap()).last().unwrap();
    assert_eq!(vtd.create_domain(&[NVME, NIC]), Err(IommuError::OutOfDomains));
    let mut map = |iova, length| vtd.map(last, Iova::new(iova), Hpa::new(0), length);
    let wide = 1 << 48;
    assert_eq!(map(wide - 0x1000, 0x2000), Err(IommuError::AddressTooWide(wide - 0x1000)));
    assert_eq!(map(0x800, 0x1000), Err(IommuError::BadRange(0x800)));
    assert_eq!(map(0x1000, 0x1000), Ok(()));
    assert_eq!(map(0, 0x4000), Err(IommuError::BadRange(0x1000)));
    for id in [0, 16] {
        let unknown = Err(IommuError::UnknownDomain(DomainId(id)));
        assert_eq!(vtd.attach(NVME, DomainId(id)), unknown);
        assert_eq!(vtd.map(DomainId(id), Iova::new(0), Hpa::new(0), 0x1000), unknown);
    }
    let source = InterruptSource::Device(NVME);
    assert_eq!(vtd.set_remap(RemapIndex(0), None), Err(IommuError::OutOfRemapEntries));
    assert_eq!(vtd.allocate_remap(source, 4096), Ok(RemapIndex(0)));
    assert_eq!(vtd.allocate_remap(source, 1), Err(IommuError::OutOfRemapEntries));
}

/// With a pool of any size below what is needed: what was made is taken apart again, as the kernel does.
#[test]
fn a_domain_that_cannot_be_made_gives_back_all_that_it_took() {
    let functions = [NVME, NIC];
    let make = |vtd: &mut VtD<'static, Ram, Model>, domain: DomainId| {
        for (at, length) in [(0, 3 << 20), (5 * GIB, 0x5000)] {
            vtd.map(domain, Iova::new(at), Hpa::new(at), length)?;
        }
        functions.iter().try_for_each(|function| vtd.attach(*function, domain))
    };
    for frames in 0.. {
        assert!(frames < 100, "no pool is large enough");
        let machine = machine(|_| ());
        let mut vtd = machine.vtd.unwrap();
        machine.ram.leave(frames);
        let made = vtd.create_domain(&functions).and_then(|domain| {
            let made = make(&mut vtd, domain);
            let able = [NVME, NIC]
                .map(|function| vtd.context_entry(function).is_some_and(|[low, _]| low & 1 != 0));
            assert_eq!(able == [true, true], made.is_ok());
            functions.iter().for_each(|function| vtd.detach(*function).unwrap());
            vtd.destroy_domain(domain);
            made
        });
        assert_eq!(made, if made.is_ok() { Ok(()) } else { Err(IommuError::OutOfFrames) });
        // The contexts of a bus stay, for the next domain: one page at most.
        let left = machine.ram.left();
        assert!(left == frames || left + 1 == frames, "{left} of {frames} frames are back");
        assert_eq!(vtd.create_domain(&[]).is_ok(), left > 0, "the number is free again");
        for (unit, function) in [(&machine.units[1], NVME), (&machine.units[0], NIC)] {
            assert!(unit.dma(function, 0x1000).is_err(), "{function} reaches memory");
        }
        if made.is_ok() {
            break;
        }
    }
}
