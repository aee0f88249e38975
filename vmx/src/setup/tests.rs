//! Every CPU that is known by its words (`cpus.txt`): what Nexit makes of them is what the CPU takes.

use std::collections::BTreeMap;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use arch::register::GuestCr4;
use arch::vcpu::Event;
use arch::{ApicId, Hpa, Vector};

use super::*;
use crate::capability::{BASIC_TRUE_CONTROLS, Capabilities, check};
use crate::controls::{ExitControls, Primary};
use crate::event::injection;
use crate::field::{Field, Readable, Width};
use crate::virtual_apic::VirtualApic;

/// An entry of the table.
struct Cpu {
    name: &'static str,
    words: BTreeMap<u32, u64>,
    verdict: &'static str,
}

/// Width of physical addresses: the CPUID leaf, as `explain` has it.
const WIDTH: u32 = 0x8000_0008;

fn cpus() -> Vec<Cpu> {
    let table = include_str!("cpus.txt");
    let (_, entries) = table.split_once("\n\n").unwrap();
    entries.split("\n\n").map(cpu).collect()
}

fn cpu(entry: &'static str) -> Cpu {
    let mut lines = entry.lines().map(str::trim);
    let (name, source) = (lines.next().unwrap(), lines.next().unwrap());
    let source_named =
        source.starts_with("published: ") || source.starts_with("composed from features: ");
    assert!(source_named, "{name}: where the words come from");
    let words = entry.split_whitespace().filter_map(|word| match word.split_once('=') {
        Some(("width", bits)) => Some((WIDTH, bits.parse().unwrap())),
        Some((msr, value)) => {
            let msr = u32::from_str_radix(msr, 16).ok()?;
            Some((msr, u64::from_str_radix(value, 16).unwrap()))
        }
        None => None,
    });
    Cpu { name, words: words.collect(), verdict: lines.next_back().unwrap() }
}

impl Cpu {
    fn word(&self, msr: u32) -> u64 {
        self.words.get(&msr).copied().unwrap_or(0)
    }

    /// As `Capabilities::read` takes them.
    fn capabilities(&self) -> Capabilities {
        let basic = self.word(0x480);
        let control = |plain: u32, of_true: u32| {
            let msr = if basic & BASIC_TRUE_CONTROLS != 0 { of_true } else { plain };
            assert_ne!(self.word(msr), 0, "{}: {msr:x} is missing", self.name);
            self.word(msr)
        };
        Capabilities {
            vmx: true,
            physical_address_bits: self.word(WIDTH) as u8,
            feature_control: 5,
            basic,
            pin_based: control(0x481, 0x48d),
            primary: control(0x482, 0x48e),
            secondary: self.word(0x48b),
            tertiary: self.word(0x492),
            exit: control(0x483, 0x48f),
            entry: control(0x484, 0x490),
            misc: self.word(0x485),
            cr0_fixed0: self.word(0x486),
            cr0_fixed1: self.word(0x487),
            cr4_fixed0: self.word(0x488),
            cr4_fixed1: self.word(0x489),
            ept_vpid: self.word(0x48c),
        }
    }
}

/// A VMCS as it is written, and with it the capability MSRs.
struct Written(BTreeMap<u32, u64>);

impl FieldWriter for Written {
    fn write<W: Width>(&mut self, field: Field<W>, value: W::Value) {
        // These are addresses of this program's heap, beyond the width of many CPUs.
        let heap = [
            field::POSTED_INTERRUPT_DESCRIPTOR_ADDRESS.encoding(),
            field::PID_POINTER_TABLE_ADDRESS.encoding(),
        ];
        let mask = if heap.contains(&field.encoding()) { 0xffff_ffff } else { !0 };
        self.0.insert(field.encoding(), value.into() & mask);
    }
}

impl Written {
    fn at(&self, field: impl Readable) -> u32 {
        self.0.get(&field.encoding()).map_or(0, |value| *value as u32)
    }

    /// The rule that an entry would break.
    #[track_caller]
    fn assert_kept(&self, what: &str) {
        let words = self.0.iter().map(|(number, value)| format!("{number:x}={value:x} "));
        assert_eq!(explain::controls(&words.collect::<String>()), None, "{what}");
    }
}

fn setup_of(mode: InterruptMode, virtual_ipis: bool) -> VcpuSetup {
    VcpuSetup {
        mode,
        nested_root: Hpa::new(0x1000),
        bitmaps: Hpa::new(0x2000),
        virtual_ipis,
        memory: Hpa::new(0x5000),
        host_tss_base: 0,
        cr4: GuestCr4 { allowed: 0x0077_0fff, hidden: 0 },
    }
}

fn write(vmcs: &mut Written, features: &Features, setup: &VcpuSetup) -> Result<(), VmxError> {
    let posting = Posting::of_guest(&[ApicId(2)]).find(|_| setup.mode == InterruptMode::Posted);
    write_controls(vmcs, features, setup, VirtualApic::of(setup, posting))
}

/// Builds all fields for `mode`, with each control that is switched while the guest runs.
fn assert_entries_are_taken(cpu: &Cpu, features: &Features, mode: InterruptMode) {
    let what = |state: &str| format!("{} in the mode {mode:?}, {state}", cpu.name);
    let of = &features.capabilities;
    let mut vmcs = Written(cpu.words.clone());
    for (msr, value) in (0x48d..).zip([of.pin_based, of.primary, of.exit, of.entry]) {
        vmcs.0.insert(msr, value);
    }
    vmcs.write(field::GUEST_CR0, 0x8000_0021);
    write(&mut vmcs, features, &setup_of(mode, false)).unwrap();
    vmcs.assert_kept(&what("as it is set up"));
    if features.preemption_timer_shift.is_some() {
        for on in [true, false] {
            let (pin_based, exit) = Controls::preemption_timer(
                PinBased::from_bits_retain(vmcs.at(field::PIN_BASED_VM_EXECUTION_CONTROLS)),
                ExitControls::from_bits_retain(vmcs.at(field::VM_EXIT_CONTROLS)),
                of.saves_preemption_timer(),
                on,
            );
            vmcs.write(field::PIN_BASED_VM_EXECUTION_CONTROLS, pin_based.bits());
            vmcs.write(field::VM_EXIT_CONTROLS, exit.bits());
            vmcs.assert_kept(&what("with the preemption timer switched"));
        }
    }
    let primary = field::PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS;
    let windows = Primary::INTERRUPT_WINDOW_EXITING | Primary::NMI_WINDOW_EXITING;
    vmcs.write(primary, vmcs.at(primary) | windows.bits());
    vmcs.assert_kept(&what("with both windows asked for"));
    for event in [Event::nmi(), Event::interrupt(Vector(0x40)), Event::exception(13, Some(0))] {
        vmcs.write(field::VM_ENTRY_INTERRUPTION_INFORMATION, injection(event, true).0.0);
        vmcs.assert_kept(&what("with an event"));
    }
}

#[test]
fn every_cpu_takes_the_controls_that_are_made_for_it_or_is_refused_by_name() {
    let cpus = cpus();
    assert!(cpus.len() >= 35, "{} CPUs", cpus.len());
    for cpu in &cpus {
        let (name, checked) = (cpu.name, check(&cpu.capabilities()));
        if let Some(lack) = cpu.verdict.strip_prefix("refused: ") {
            let sentence = checked.unwrap_err().to_string();
            assert!(sentence.contains(&format!("{lack} (")), "{name}: {sentence}");
            assert!(sentence.contains("use a newer CPU"), "{name}: {sentence}");
            continue;
        }
        let features = checked.unwrap_or_else(|error| panic!("{name}: {error}"));
        for mode in [InterruptMode::Exitless, InterruptMode::Exiting] {
            assert_entries_are_taken(cpu, &features, mode);
        }
        let posted = Controls::choose(&features.capabilities, InterruptMode::Posted);
        match cpu.verdict.strip_prefix("runs: exitless exiting; posted ") {
            None => {
                assert_eq!(cpu.verdict, "runs: exitless exiting posted", "{name}");
                assert_entries_are_taken(cpu, &features, InterruptMode::Posted);
            }
            Some(lack) => {
                let sentence = posted.unwrap_err().to_string();
                assert!(sentence.contains(&format!("{lack} (")), "{name}: {sentence}");
            }
        }
    }
}

#[test]
fn a_cpu_that_cannot_send_ipis_is_refused_where_writes_of_icr_pass() {
    let (mut with, mut without) = (0, 0);
    for cpu in cpus().iter().filter(|cpu| cpu.verdict == "runs: exitless exiting posted") {
        let features = check(&cpu.capabilities()).unwrap();
        let controls = Controls::choose(&features.capabilities, InterruptMode::Posted).unwrap();
        let mut vmcs = Written(BTreeMap::new());
        let written = write(&mut vmcs, &features, &setup_of(InterruptMode::Posted, true));
        if controls.virtualizes_ipis() {
            with += 1;
            assert_eq!(written, Ok(()), "{}", cpu.name);
        } else {
            without += 1;
            assert_eq!(written, Err(VmxError::NoIpiVirtualization), "{}", cpu.name);
        }
    }
    assert!(with > 0 && without > 0, "{with} can and {without} cannot");
}

/// The table names each kind.
#[test]
fn the_table_has_every_generation_and_every_use() {
    let cpus = cpus();
    for kind in [
        "Penryn",
        "Nehalem",
        "Westmere",
        "Sandy Bridge",
        "Ivy Bridge",
        "Haswell",
        "Broadwell",
        "Skylake client",
        "Skylake server",
        "Cascade Lake",
        "Ice Lake",
        "Sapphire Rapids",
        "Alder Lake",
        "of Bochs",
        "KVM 6.1",
        "KVM 6.12",
        "-cpu Nehalem",
        "-cpu Westmere",
    ] {
        assert!(cpus.iter().any(|cpu| cpu.name.contains(kind)), "{kind}");
    }
    let with_ipis = |cpu: &&Cpu| {
        Controls::choose(&cpu.capabilities(), InterruptMode::Posted)
            .is_ok_and(|controls| controls.virtualizes_ipis())
    };
    assert!(cpus.iter().any(|cpu| with_ipis(&cpu)), "one sends IPIs by itself");
}
