//! What the hypervisor refuses at boot: each time one sentence on the console that says what is wrong
//! and what to do, then a halt, and exit status 1.

use nexit_tests::{Devices, Emulator, Folder, Guest, Kernel, Outcome, Payload};

const OPTIONS: &[&str] = &["--timeout", "60", "--memory", "1G"];

/// Boots the payload with these arguments for QEMU; the refusal.
fn refusal(name: &str, toml: &str, arguments: &[&str]) -> String {
    refused(&Folder::new(name).run(toml, OPTIONS, &Devices::arguments(arguments)))
}

fn refused(outcome: &Outcome) -> String {
    let sentence = outcome.refusal();
    assert!(sentence.len() > 40 && !sentence.contains('\n'), "no advice: {sentence}");
    sentence.to_owned()
}

#[track_caller]
fn assert_says(sentence: &str, words: &[&str]) {
    for word in words {
        assert!(sentence.contains(word), "\"{word}\" is not in: {sentence}");
    }
}

fn ends() -> Payload<'static> {
    Payload::new("ends")
}

#[test]
fn the_posted_mode_on_amd_v_is_refused() {
    let payload = Payload { further: "interrupts = \"posted\"", ..ends() };
    let sentence = refusal("posted", &payload.toml(), &[]);
    assert_says(&sentence, &["interrupts = \"posted\"", "VT-x", "\"exitless\""]);
}

#[test]
fn two_guests_on_the_threads_of_one_core_are_refused_unless_the_file_accepts_it() {
    let other = Payload { cpus: "[1]", ..ends() }.toml().replace("name = \"", "name = \"other-");
    let toml = ends().toml() + &other;
    let threads = ["-smp", "2,sockets=1,cores=1,threads=2"];
    let sentence = refusal("core", &toml, &threads);
    assert_says(&sentence, &["CPU 0", "CPU 1", "two threads of one core", "share_cores = true"]);
    let accepted = format!("share_cores = true\n{toml}");
    let outcome = Folder::new("core-shared").run(&accepted, OPTIONS, &Devices::arguments(&threads));
    assert_eq!(outcome.status, Some(0), "{outcome}");
}

/// The refusal of a boot with these modules, each a name and its contents, in spite of a
/// configuration that the host finds right.
fn refusal_of_modules(name: &str, modules: &[(&str, &[u8])]) -> String {
    let folder = Folder::new(name);
    let paths: Vec<String> =
        modules.iter().map(|(module, contents)| folder.write(module, contents)).collect();
    // The last of QEMU's options counts.
    let devices = Devices::arguments(&["-initrd", &paths.join(",")]);
    refused(&folder.run(&ends().toml(), OPTIONS, &devices))
}

/// The refusal of a configuration that the host never lets pass.
fn refusal_of_configuration(name: &str, toml: &str) -> String {
    let kernel = ends().image();
    refusal_of_modules(name, &[("nexit.toml", toml.as_bytes()), ("ends", &kernel)])
}

/// The refusal of a guest's kernel.
fn refusal_of_kernel(name: &str, kernel: &[u8], further: &str) -> String {
    let folder = Folder::new(name);
    folder.write("kernel", kernel);
    folder.write("initrd", vec![1; 64 << 20]);
    let toml = format!(
        "[[guest]]\nname = \"a\"\ncpus = [0]\nmemory = \"64M\"\nkernel = \"kernel\"\n{further}\n"
    );
    refused(&folder.run(&toml, OPTIONS, &Devices::none()))
}

#[test]
fn a_boot_without_a_configuration() {
    let sentence = refusal_of_modules("refuse-no-configuration", &[("ends", b"x")]);
    assert_says(&sentence, &["no module named nexit.toml", "add it to the boot entry"]);
}

#[test]
fn a_configuration_that_is_not_text() {
    let toml: &[u8] = b"[[guest]]\nname = \"\xff\"\n";
    let sentence = refusal_of_modules("refuse-no-text", &[("nexit.toml", toml)]);
    assert_says(&sentence, &["nexit.toml is not text", "byte 18"]);
}

#[test]
fn a_malformed_configuration() {
    let sentence = refusal_of_configuration("refuse-syntax", "[[guest]]\nname = \"a\ncpus = [0]\n");
    assert_says(&sentence, &["nexit.toml, line 2: ", "not TOML"]);
}

#[test]
fn an_unknown_key() {
    let toml = format!("{}memry = \"1G\"\n", ends().toml());
    let sentence = refusal_of_configuration("refuse-unknown-key", &toml);
    assert_says(&sentence, &["nexit.toml, line 9: unknown key \"memry\"", "the keys are"]);
}

#[test]
fn a_cpu_that_two_guests_want() {
    let toml = ends().toml() + &ends().toml().replace("name = \"ends\"", "name = \"other\"");
    let sentence = refusal_of_configuration("refuse-cpu-twice", &toml);
    assert_says(&sentence, &["nexit.toml, line ", "CPU 0", "ends"]);
}

#[test]
fn a_cpu_that_the_machine_does_not_have() {
    let toml = ends().toml().replace("[0]", "[6]");
    let sentence = refusal_of_configuration("refuse-no-cpu", &toml);
    assert_says(&sentence, &["guest ends", "cpus", "CPU 6", "the machine has 2"]);
}

#[test]
fn of_two_mistakes_the_second_is_in_the_log() {
    let toml =
        Payload { further: "devices = [\"00:09.0\"]\nio_ports = [\"0xcf8\"]", ..ends() }.toml();
    let outcome = Folder::new("refuse-two").run(&toml, OPTIONS, &Devices::none());
    assert_says(&refused(&outcome), &["nexit.toml, line 8: guest ends: devices names 00:09.0"]);
    let other = "nexit: also wrong: nexit.toml, line 9: guest ends: io_ports names 0xcf8";
    assert!(outcome.own_lines().any(|line| line.starts_with(other)), "{outcome}");
}

#[test]
fn a_kernel_that_the_loader_did_not_pass() {
    let toml = ends().toml();
    let modules: [(&str, &[u8]); 2] = [("nexit.toml", toml.as_bytes()), ("other", b"x")];
    let sentence = refusal_of_modules("refuse-no-kernel", &modules);
    assert_says(&sentence, &["guest ends", "kernel = ", "no file ends", "nexit.toml, other"]);
}

#[test]
fn an_initrd_that_the_loader_did_not_pass() {
    let toml = Payload { further: "initrd = \"gone.img\"", ..ends() }.toml();
    let sentence = refusal_of_configuration("refuse-no-initrd", &toml);
    assert_says(&sentence, &["guest ends", "initrd = \"gone.img\"", "no file gone.img"]);
}

#[test]
fn memory_that_is_not_there() {
    let toml = ends().toml().replace("64M", "3G");
    let sentence = refusal("refuse-memory", &toml, &[]);
    assert_says(&sentence, &["guest ends", "memory = 3072 MiB is not there", "MiB free"]);
}

#[test]
fn a_device_that_is_not_there() {
    let toml = Payload { further: "devices = [\"00:09.0\"]", ..ends() }.toml();
    let sentence = refusal("refuse-no-device", &toml, &["-device", "nvme,serial=n,addr=4"]);
    assert_says(&sentence, &["guest ends", "00:09.0", "00:04.0", "no such PCI function"]);
}

#[test]
fn a_bridge() {
    // Alone, and with all of its isolation group, so that only the bridge is wrong.
    let alone = "devices = [\"00:1f.0\"]";
    let group = "devices = [\"00:1f.0\", \"00:1f.2\", \"00:1f.3\"]";
    for (name, further) in [("refuse-bridge", alone), ("refuse-bridge-in-group", group)] {
        let sentence = refusal(name, &Payload { further, ..ends() }.toml(), &[]);
        assert_says(
            &sentence,
            &["nexit.toml, line 8: guest ends: devices: ", "00:1f.0", "is a bridge"],
        );
    }
}

#[test]
fn a_function_that_is_not_isolated_from_the_next_one() {
    let toml = Payload { further: "devices = [\"00:06.0\"]", ..ends() }.toml();
    let pair = ["virtio-rng-pci,addr=6.0,multifunction=on", "virtio-rng-pci,addr=6.1"];
    let sentence = refusal("refuse-group", &toml, &["-device", pair[0], "-device", pair[1]]);
    assert_says(&sentence, &["00:06.0", "00:06.1", "Access Control Services", "to one guest"]);
}

#[test]
fn a_device_on_a_machine_without_an_iommu() {
    let payload = Payload { further: "devices = [\"00:01.1\"]", ..ends() };
    let sentence = refused(&Emulator::Bochs.run("refuse-no-iommu", &payload));
    let words =
        ["guest ends", "00:01.1", "no usable IOMMU", "no DMAR table", "unsafe_no_iommu = true"];
    assert_says(&sentence, &words);
}

#[test]
fn a_cpu_without_virtualization() {
    let sentence = refusal("refuse-no-svm", &ends().toml(), &["-cpu", "EPYC-v4,-svm"]);
    assert_says(&sentence, &["neither VT-x", "nor AMD-V", "firmware's setup"]);
}

#[test]
fn a_cpu_without_nested_paging() {
    let sentence = refusal("refuse-no-npt", &ends().toml(), &["-cpu", "EPYC-v4,+x2apic,-npt"]);
    assert_says(&sentence, &["nested paging"]);
}

/// No bit of IA32_MISC_ENABLE hides it here, so it cannot be switched on.
#[test]
fn a_cpu_without_execute_disable() {
    let cpu = "EPYC-v4,+x2apic,+svm,+npt,-nx";
    let sentence = refusal("refuse-no-nx", &ends().toml(), &["-cpu", cpu]);
    assert_says(
        &sentence,
        &["no execute disable", "CPUID 0x80000001 EDX bit 20", "firmware's setup"],
    );
}

#[test]
fn a_cpu_without_x2apic() {
    let sentence = refusal("refuse-no-x2apic", &ends().toml(), &["-cpu", "EPYC-v4,-x2apic"]);
    assert_says(&sentence, &["x2APIC"]);
}

#[test]
fn a_cpu_without_64_bit_mode() {
    let sentence = refusal("refuse-32-bit", &ends().toml(), &["-cpu", "qemu32"]);
    assert_says(&sentence, &["no 64-bit mode"]);
}

/// The refusal of a CPU that Bochs puts together from these parts.
fn refusal_of_bochs_cpu(name: &str, parts: &str) -> String {
    let options = [
        "--emulator",
        "bochs",
        "--iommu",
        "none",
        "--timeout",
        "90",
        "--bochs-model",
        "bx_generic",
    ];
    let cpuid = format!("cpuid: x86_64=1, 1g_pages=1, xsave=1, {parts}");
    let devices = Devices::arguments(&[&cpuid]);
    refused(&Folder::new(name).run(&ends().toml(), &options, &devices))
}

#[test]
fn an_intel_cpu_without_vt_x() {
    let sentence = refusal_of_bochs_cpu("refuse-no-vmx", "apic=x2apic, vmx=0");
    assert_says(&sentence, &["neither VT-x", "firmware's setup"]);
}

#[test]
fn vt_x_without_extended_page_tables() {
    let sentence = refusal_of_bochs_cpu("refuse-no-ept", "apic=x2apic, vmx=1");
    assert_says(&sentence, &["VT-x has no ENABLE_EPT", "IA32_VMX_PROCBASED_CTLS2 = 0x"]);
}

#[test]
fn a_kernel_that_is_no_kernel() {
    let noise: Vec<u8> =
        (0_u32..100_000).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let sentence = refusal_of_kernel("refuse-noise", &noise, "");
    assert_says(&sentence, &["guest a: kernel = \"kernel\"", "bzImage", "multiboot"]);
}

#[test]
fn an_empty_kernel() {
    assert_says(&refusal_of_kernel("refuse-empty", b"", ""), &["guest a: kernel = \"kernel\""]);
}

#[test]
fn a_linux_that_is_cut_off() {
    for (name, length) in [("refuse-short-linux", 100_000), ("refuse-shorter-linux", 700)] {
        let sentence = refusal_of_kernel(name, &Kernel::Stock.image()[..length], "");
        assert_says(&sentence, &["guest a: kernel = \"kernel\"", "cut off", "copy the file again"]);
    }
}

#[test]
fn a_multiboot_kernel_that_is_cut_off() {
    let kernel = ends().image();
    let sentence = refusal_of_kernel("refuse-short-multiboot", &kernel[..9000], "");
    assert_says(&sentence, &["guest a: kernel = \"kernel\"", "cut off", "there are 9000"]);
}

#[test]
fn a_linux_that_its_memory_cannot_hold() {
    let folder = Folder::new("refuse-large-linux");
    let guest = Guest { memory: "16M", ..Guest::on_qemu("idle", "[]") };
    let sentence = refused(&folder.run(&guest.toml(), OPTIONS, &Devices::none()));
    assert_says(&sentence, &["guest linux: kernel = ", "the kernel needs", "give it more memory"]);
}

#[test]
fn an_initrd_that_the_memory_cannot_hold() {
    let kernel = ends().image();
    let toml = "initrd = \"initrd\"";
    let sentence = refusal_of_kernel("refuse-large-initrd", &kernel, &format!("{toml}\n"));
    assert_says(&sentence, &["guest a", "the initrd needs", "give it more memory"]);
}
