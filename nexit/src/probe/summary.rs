//! A machine in words: what the hypervisor's own crates make of it.

use std::fmt::Write as _;

use arch::Bdf;
use arch::bytes::u64_at;
use banner::{Cpu, SvmWords, Topology, Words};
use capture::{Capture, CpuKind, MemoryKind, View};
use pci::{Bar, BarKind, Function};

use super::words;

/// Where in the text a part begins.
const INDENT: &str = "    ";

/// The whole of it.
pub(super) fn summary(capture: &Capture) -> String {
    let view = capture.view();
    let mut out = String::new();
    // Writing to a string never fails.
    let _ = writeln!(out, "machine: {}, read from {}", system(capture), capture.source);
    cpus(&mut out, capture, &view);
    memory(&mut out, capture);
    firmware(&mut out, capture, &view);
    iommu(&mut out, capture, &view);
    functions(&mut out, capture, &view);
    if !capture.missing.is_empty() {
        out.push_str("\nnot known:\n");
        for sentence in &capture.missing {
            let _ = writeln!(out, "{INDENT}{sentence}");
        }
    }
    out
}

fn system(capture: &Capture) -> &str {
    capture.system.as_deref().unwrap_or("without a name")
}

fn cpus(out: &mut String, capture: &Capture, view: &View) {
    let from_tables = view.cpus().iter().map(|id| id.0);
    let identifiers: Vec<u32> = if view.cpus().is_empty() {
        capture.cpus.iter().map(|cpu| cpu.apic_id).collect()
    } else {
        from_tables.collect()
    };
    let kind = view.kind.as_ref();
    let topology = kind.and_then(|kind| Topology::read(|leaf, sub| kind.cpuid(leaf, sub)));
    let counts = topology.map(|it| format!(": {}", it.count(identifiers.iter().copied())));
    let _ = writeln!(out, "\nCPUs: {}{}", identifiers.len(), counts.unwrap_or_default());
    let list: Vec<String> = identifiers.iter().map(ToString::to_string).collect();
    if !list.is_empty() {
        let order = "in the order in which the configuration counts them";
        let of = if view.cpus().is_empty() { "as Linux counts them" } else { order };
        let _ = writeln!(out, "{INDENT}APIC identifiers, {of}: {}", list.join(" "));
    }
    for (index, kind) in capture.cpu_kinds.iter().enumerate() {
        let has_kind = capture.cpus.iter().filter(|cpu| cpu.kind == index);
        if capture.cpu_kinds.len() > 1 {
            let list: Vec<String> = has_kind.map(|cpu| cpu.apic_id.to_string()).collect();
            let _ = writeln!(out, "{INDENT}of a kind, APIC identifiers {}:", list.join(" "));
        }
        kind_of_cpu(out, kind);
    }
}

fn kind_of_cpu(out: &mut String, kind: &CpuKind) {
    let known = !kind.cpuid.0.is_empty();
    if known {
        let cpuid = |leaf: u32, subleaf: u32| kind.cpuid(leaf, subleaf);
        let _ = writeln!(out, "{INDENT}{}", Cpu::read(cpuid, kind.microcode.map(|it| it as u32)));
    } else if let Some(name) = &kind.name {
        let _ = writeln!(out, "{INDENT}{name}");
    }
    let words: Vec<(u32, u64)> = kind
        .msrs
        .0
        .iter()
        .map(|(number, value)| (*number, *value))
        .filter(|(_, value)| *value != 0)
        .collect();
    if !words.is_empty() {
        let _ = writeln!(out, "{INDENT}MSRs: {}", Words(&words));
    }
    if kind.cpuid(0x8000_0001, 0).ecx >> 2 & 1 != 0 {
        let _ = writeln!(out, "{INDENT}SVM: {}", SvmWords(kind.cpuid(0x8000_000a, 0)));
    }
    let _ = writeln!(out, "{INDENT}would Nexit run on it? {}", verdict(kind));
}

/// Whether it is a CPU of a maker that has AMD-V, or has it.
fn svm_is_meant(kind: &CpuKind) -> bool {
    const AUTHENTIC_AMD_EBX: u32 = 0x6874_7541;
    const HYGON_GENUINE_EBX: u32 = 0x6f67_7948;
    let vendor = kind.cpuid(0, 0).ebx;
    kind.cpuid(0x8000_0001, 0).ecx >> 2 & 1 != 0
        || [AUTHENTIC_AMD_EBX, HYGON_GENUINE_EBX].contains(&vendor)
}

/// Whether the hypervisor would run on such a CPU.
fn verdict(kind: &CpuKind) -> String {
    if kind.cpuid.0.is_empty() {
        let has = |flag: &str| kind.flags.split(' ').any(|it| it == flag);
        return match (has("vmx") || has("svm"), has("x2apic")) {
            (true, true) => String::from(
                "perhaps: Linux lists virtualization and x2apic; what else is needed is in CPUID and \
                 MSRs, which are not known",
            ),
            _ if kind.flags.is_empty() => String::from("not known"),
            (false, _) => {
                String::from("no: Linux lists neither vmx nor svm; is it switched off in setup?")
            }
            (true, false) => {
                String::from("no: Linux does not list x2apic; is it switched off in setup?")
            }
        };
    }
    if kind.cpuid(1, 0).ecx >> 21 & 1 == 0 {
        return String::from("no: the CPU has no x2APIC (CPUID 1 ECX bit 21): enable it in setup");
    }
    if svm_is_meant(kind) {
        return match svm::check(&kind.svm()) {
            Ok(_) if kind.msr(arch::msr::VM_CR).is_none() => String::from(
                "yes, with AMD-V, if the firmware has not locked it off (VM_CR is not known)",
            ),
            Ok(_) => String::from("yes, with AMD-V"),
            Err(error) => format!("no: {error}"),
        };
    }
    let Some(capabilities) = kind.vmx() else {
        return String::from(
            "perhaps: the CPU has VT-x, but the MSRs that say what it can do are not known",
        );
    };
    match vmx::capability::check(&capabilities) {
        Ok(features) => {
            let lacks = [
                (features.vpid, "VPIDs"),
                (features.preemption_timer_shift.is_some(), "a preemption timer"),
                (features.largest_page == arch::PageSize::Size1G, "1 GiB pages"),
            ];
            let lacks: Vec<&str> =
                lacks.iter().filter(|(has, _)| !has).map(|(_, what)| *what).collect();
            let but = if lacks.is_empty() {
                String::new()
            } else {
                format!(", without {}", lacks.join(", "))
            };
            format!("yes, with VT-x{but}")
        }
        Err(error) => format!("no: {error}"),
    }
}

fn memory(out: &mut String, capture: &Capture) {
    if capture.memory.is_empty() {
        out.push_str("\nmemory: not known\n");
        return;
    }
    let usable = capture.memory.iter().filter(|range| range.kind == MemoryKind::Usable);
    let (bytes, count) =
        usable.fold((0_u64, 0), |(bytes, count), it| (bytes.saturating_add(it.length), count + 1));
    let _ = writeln!(out, "\nmemory: {} MiB usable in {count} regions", bytes >> 20);
    for range in &capture.memory {
        let last = range.start.saturating_add(range.length.saturating_sub(1));
        let kind = format!("{:?}", range.kind);
        let _ = writeln!(out, "{INDENT}{:#014x} to {last:#014x} {kind}", range.start);
    }
}

fn firmware(out: &mut String, capture: &Capture, view: &View) {
    let kind = match capture.uefi {
        Some(true) => "UEFI",
        Some(false) => "BIOS",
        None => "of unknown kind",
    };
    let _ = writeln!(out, "\nfirmware: {kind}");
    let tables: Vec<&str> = capture.tables.iter().map(|table| table.signature.as_str()).collect();
    if tables.is_empty() {
        return;
    }
    let _ = writeln!(out, "{INDENT}tables: {}", tables.join(" "));
    let platform = match &view.platform {
        Ok(platform) => platform,
        Err(error) => {
            let _ = writeln!(out, "{INDENT}they cannot be used: {error}");
            return;
        }
    };
    for entry in &platform.io_apics {
        let _ = writeln!(
            out,
            "{INDENT}I/O APIC {} at {}, from interrupt {} on",
            entry.id, entry.address, entry.first_gsi
        );
    }
    for moved in platform.overrides.iter().filter(|it| u32::from(it.irq) != it.gsi) {
        let _ = writeln!(
            out,
            "{INDENT}interrupt {} of the ISA bus is interrupt {}",
            moved.irq, moved.gsi
        );
    }
    for window in &platform.ecam {
        let (first, last) = (window.first_bus, window.last_bus);
        let _ = writeln!(
            out,
            "{INDENT}MCFG: segment {:04x}, buses {first:02x} to {last:02x} at {}",
            window.segment, window.base
        );
    }
    let has = |what: &str, there: bool| format!("{what} {}", if there { "yes" } else { "no" });
    let _ = writeln!(
        out,
        "{INDENT}{}, {}, {}, {}, {}, {}",
        has("HPET", platform.hpet.is_some()),
        has("ACPI timer", platform.pm_timer.is_some()),
        has("real-time clock", platform.has_rtc),
        has("way to switch off (\\_S5)", platform.soft_off.is_some()),
        has("reset register", platform.reset.is_some()),
        has("hardware-reduced", platform.hardware_reduced),
    );
    if let Some(console) = console(capture) {
        let _ = writeln!(out, "{INDENT}{console}");
    }
    for note in &platform.notes {
        let _ = writeln!(out, "{INDENT}note: {note}");
    }
}

/// What the SPCR says (Serial Port Console Redirection Table: interface type at 36, Base Address at 40).
fn console(capture: &Capture) -> Option<String> {
    let spcr = capture.tables.iter().find(|table| table.signature == "SPCR")?;
    let bytes = &spcr.bytes.0;
    let (kind, space, at) = (bytes.get(36)?, bytes.get(40)?, u64_at(bytes, 44)?);
    let place = match space {
        1 => "port",
        _ => "address",
    };
    Some(match at {
        0 => String::from("SPCR: no console is redirected"),
        at => format!("SPCR: a serial console of type {kind} at {place} {at:#x}"),
    })
}

fn iommu(out: &mut String, capture: &Capture, view: &View) {
    if capture.tables.is_empty() {
        out.push_str("\nIOMMU: not known, as the ACPI tables are not\n");
        return;
    }
    let dmar = match view.dmar() {
        Ok(dmar) => dmar,
        Err(why) => {
            let _ = writeln!(out, "\nIOMMU: none that can be used: {why}");
            return;
        }
    };
    let _ = writeln!(out, "\nIOMMU: VT-d; number of units: {}", dmar.units().count());
    for unit in dmar.units() {
        let captured = capture.iommu_units.iter().find(|it| it.address == unit.registers.as_u64());
        let words = captured.map_or_else(
            || String::from("CAP and ECAP not known"),
            |it| format!("CAP {:#x} ECAP {:#x}", it.capability, it.extended),
        );
        let rest = if unit.include_all { ", and all that others do not name" } else { "" };
        let _ = writeln!(
            out,
            "{INDENT}at {} for segment {:04x}{rest}: {words}",
            unit.registers, unit.segment
        );
        if let Some(unit) = captured
            && let Err(error) = iommu::vtd::check(unit.capability, unit.extended)
        {
            let _ = writeln!(out, "{INDENT}{INDENT}it cannot be used: {error}");
        }
    }
    if let Err(error) = dmar.check_remapping() {
        let _ = writeln!(out, "{INDENT}it cannot be used: {error}");
    }
    if dmar.x2apic_opt_out() {
        let _ = writeln!(
            out,
            "{INDENT}the table asks for no x2APIC mode (X2APIC_OPT_OUT): Nexit uses it all the same"
        );
    }
    if dmar.left_out() > 0 {
        let _ =
            writeln!(out, "{INDENT}{} parts of the table are not whole: left out", dmar.left_out());
    }
}

fn functions(out: &mut String, capture: &Capture, view: &View) {
    let _ = writeln!(out, "\nPCI: {} functions", view.functions.len());
    for function in &view.functions {
        one(out, capture, view, function);
    }
    for at in &view.unreached {
        let _ = writeln!(
            out,
            "{INDENT}{at}: no bridge and no window of the MCFG leads there: Nexit does not see it"
        );
    }
}

fn one(out: &mut String, capture: &Capture, view: &View, function: &Function) {
    let Function { bdf, vendor, device, class, .. } = *function;
    let captured = capture.function(bdf);
    let name = captured.and_then(|it| it.name.as_deref());
    let name = name.unwrap_or_else(|| words::class(class));
    let driver = captured.and_then(|it| it.driver.as_deref());
    let driver = driver.map(|it| format!(", driver {it}")).unwrap_or_default();
    let _ =
        writeln!(out, "{INDENT}{bdf} {vendor:04x}:{device:04x} {name} (class {class:06x}){driver}");
    let mut detail = |text: String| {
        let _ = writeln!(out, "{INDENT}{INDENT}{text}");
    };
    let captured_sizes = captured.map_or(&[][..], |it| &it.bar_sizes);
    for bar in view.bars(function).iter().flatten() {
        detail(bar_words(bar));
    }
    if !function.is_infrastructure() && captured_sizes.is_empty() {
        detail(String::from("the sizes of its BARs are not known"));
    }
    if captured.is_none_or(|it| it.config.0.len() <= 64) {
        detail(String::from(
            "its capabilities are not known, and so neither its group nor its reset",
        ));
        return;
    }
    let capabilities = words::capabilities(&view.space, bdf);
    if !capabilities.is_empty() {
        detail(format!("capabilities: {}", capabilities.join(", ")));
    }
    if function.is_infrastructure() {
        return;
    }
    let others = view.groups.group(bdf).filter(|it| it.bdf != bdf);
    let (stays, comes): (Vec<&Function>, Vec<&Function>) =
        others.partition(|it| it.may_stay_behind());
    let list =
        |of: &[&Function]| of.iter().map(|it| it.bdf.to_string()).collect::<Vec<_>>().join(", ");
    detail(match (comes.is_empty(), stays.is_empty()) {
        (true, true) => String::from("alone in its group"),
        (true, false) => format!("in a group with {}, which may stay behind", list(&stays)),
        (false, _) => format!("it goes to a guest only together with {}", list(&comes)),
    });
    let owned: Vec<Bdf> = view.groups.group(bdf).map(|it| it.bdf).collect();
    let way = pci::reset::way(&view.space, &view.functions, function, &owned);
    detail(format!("it is reset {way}"));
    if let Some(range) = view.reserved_memory(bdf) {
        let relaxed = if function.outlives_reserved_memory() {
            "which a display or USB controller may leave behind"
        } else {
            "so it cannot be assigned"
        };
        detail(format!(
            "the firmware keeps using memory at {} to {} (RMRR), {relaxed}",
            range.start,
            range.end()
        ));
    }
}

fn bar_words(bar: &Bar) -> String {
    let Bar { index, kind, prefetchable, base, size } = *bar;
    let kind = match kind {
        BarKind::Memory32 => "memory of 32 bits",
        BarKind::Memory64 => "memory of 64 bits",
        BarKind::Io => "ports",
    };
    let prefetchable = if prefetchable { ", prefetchable" } else { "" };
    let size = match size {
        size if size.is_multiple_of(1 << 30) => format!("{} GiB", size >> 30),
        size if size.is_multiple_of(1 << 20) => format!("{} MiB", size >> 20),
        size if size.is_multiple_of(1 << 10) => format!("{} KiB", size >> 10),
        size => format!("{size} bytes"),
    };
    format!("BAR {index}: {kind}{prefetchable}, {size} at {base:#x}")
}
