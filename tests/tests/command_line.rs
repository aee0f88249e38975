//! The program `nexit` itself: what it refuses, its exit status, what it puts into images. No guest
//! is run here.

use std::process::Command;

use nexit_tests::{Devices, Folder, Outcome, q35};

const GUEST: &str = "[[guest]]\nname = \"a\"\ncpus = [0]\nmemory = \"64M\"\nkernel = \"kernel\"\n";

fn run(folder: &Folder, toml: &str, options: &[&str]) -> Outcome {
    folder.run(toml, options, &Devices::none())
}

/// The call is refused with status 2 before anything starts, in a sentence that contains `words`.
fn assert_refused(outcome: &Outcome, words: &str) {
    assert_eq!(outcome.status, Some(2), "{outcome}");
    assert!(outcome.errors.contains(words), "{outcome}");
    assert_eq!(outcome.output, "", "nothing was started");
}

#[test]
fn a_configuration_that_is_not_there_is_refused() {
    let folder = Folder::new("no-configuration");
    let outcome = folder.nexit("run", &["run", "--config", "/no/such.toml"]);
    assert_refused(&outcome, "/no/such.toml: No such file");
}

#[test]
fn an_unknown_key_is_refused_with_its_line() {
    let folder = Folder::new("unknown-key");
    folder.write("kernel", "");
    let outcome = run(&folder, &format!("{GUEST}memry = 1\n"), &[]);
    assert_refused(&outcome, "line 6: unknown key \"memry\"");
}

#[test]
fn a_kernel_that_is_not_there_is_refused_by_its_path() {
    let folder = Folder::new("no-kernel");
    let outcome = run(&folder, GUEST, &[]);
    let words = "config.toml:5: guest a: kernel = \"kernel\": there is no such file: ";
    assert_refused(&outcome, words);
}

#[test]
fn two_files_of_one_name_are_refused() {
    let folder = Folder::new("one-name");
    let other = GUEST.replace("\"a\"", "\"b\"").replace("[0]", "[1]");
    let other = other.replace("\"kernel\"", "\"sub/kernel\"");
    let outcome = run(&folder, &format!("{GUEST}{other}"), &[]);
    assert_refused(&outcome, "would both be called kernel in the image");
}

#[test]
fn fewer_cpus_than_the_guests_need_are_refused() {
    let folder = Folder::new("few-cpus");
    folder.write("kernel", "");
    let outcome = run(&folder, &GUEST.replace("[0]", "[0, 3]"), &["--cpus", "2"]);
    assert_refused(&outcome, "at least 4 are needed");
}

#[test]
fn more_memory_or_cpus_than_there_can_be_are_refused() {
    let folder = Folder::new("too-much");
    folder.write("kernel", "");
    let outcome = run(&folder, &GUEST.replace("64M", "900G"), &[]);
    assert_refused(
        &outcome,
        "the machine would have 922112 MiB of memory (921600 MiB are the guests')",
    );
    let outcome = run(&folder, &GUEST.replace("64M", "2304M"), &["--emulator", "bochs"]);
    assert_refused(&outcome, "the guests have 2304 MiB of memory, and Bochs can hold 1792 MiB");
    let outcome = run(&folder, &GUEST.replace("[0]", "[255]"), &[]);
    assert_refused(&outcome, "at most 255 CPUs, counted from 0");
}

/// One call of `nexit run` or `nexit image` as a user would write it, without `--unchecked`.
fn as_a_user(folder: &Folder, toml: &str, command: &str, options: &[&str]) -> Outcome {
    let config = folder.write("config.toml", toml);
    let arguments: Vec<&str> =
        [command, "--config", &config].iter().chain(options).copied().collect();
    folder.nexit(command, &arguments)
}

#[test]
fn what_check_refuses_without_a_machine_run_and_image_refuse_before_anything_starts() {
    let folder = Folder::new("checked");
    folder.write("kernel", "no kernel at all");
    folder.write("initrd", "");
    std::fs::create_dir(folder.path("folder")).unwrap();
    for (from, to, words) in [
        (
            "",
            "",
            "config.toml:5: guest a: kernel = \"kernel\": this is neither a Linux bzImage nor",
        ),
        ("\"kernel\"", "\"folder\"", "/folder is a folder: name a file in it"),
        ("\"kernel\"", "\"gone\"", "there is no such file: "),
        ("64M\"", "64M\"\ninitrd = \"initrd\"", "initrd = \"initrd\": the file is empty"),
        ("64M\"", "64M\"\nio_ports = [\"0xcf8\"]", "config.toml:5: guest a: io_ports names 0xcf8"),
    ] {
        let toml = GUEST.replace(from, to);
        let image = folder.path("out.iso").display().to_string();
        assert_refused(&as_a_user(&folder, &toml, "run", &[]), words);
        assert_refused(&as_a_user(&folder, &toml, "image", &["--output", &image]), words);
        assert!(!folder.path("out.iso").exists());
    }
    // All of it at once.
    let toml = GUEST.replace("64M\"", "64M\"\ninitrd = \"initrd\"\nio_ports = [\"0xcf8\"]");
    let outcome = as_a_user(&folder, &toml.replace("\"kernel\"", "\"folder\""), "run", &[]);
    assert_eq!(outcome.errors.lines().count(), 3, "{outcome}");
}

#[test]
fn what_cannot_be_written_is_noticed_before_anything_starts() {
    let folder = Folder::new("unwritable");
    folder.write("kernel", "");
    let there = folder.path("").display().to_string();
    let nowhere = folder.path("no/such/file").display().to_string();
    for path in [&there, &nowhere] {
        let words = format!("--report {path}: ");
        let options = ["--unchecked", "--report", path.as_str()];
        assert_refused(&as_a_user(&folder, GUEST, "run", &options), &words);
        let words = format!("--output {path}: ");
        let options = ["--unchecked", "--output", path.as_str()];
        assert_refused(&as_a_user(&folder, GUEST, "image", &options), &words);
    }
}

#[test]
fn a_folder_or_noise_as_configuration_is_told_as_such() {
    let folder = Folder::new("no-text");
    let there = folder.path("").display().to_string();
    let noise = folder.write("noise.toml", [b'a', b'\n', 0xff]);
    for command in [&["run", "--config"][..], &["check"]] {
        let call = |path: &str| {
            let arguments: Vec<&str> = command.iter().copied().chain([path]).collect();
            folder.nexit("call", &arguments)
        };
        assert_refused(&call(&there), "this is a folder: name the configuration in it");
        assert_refused(&call(&noise), "noise.toml is not text: byte 2 is no UTF-8");
    }
}

#[test]
fn a_check_ends_with_0_where_all_fits_1_where_not_and_2_where_it_could_not_be_made() {
    let folder = Folder::new("check-status");
    let kernel = nexit_tests::Payload::new("ends").path().display().to_string();
    let good = folder.write("good.toml", GUEST.replace("\"kernel\"", &format!("\"{kernel}\"")));
    let bad = folder.write("bad.toml", GUEST);
    let wrong = folder.write("wrong.toml", "[[guest]\n");
    let machine = folder.path("machine.toml");
    q35(&[], Some("")).write(&machine).unwrap();
    let machine = machine.display().to_string();
    for (arguments, status, words) in [
        (&["check", &good][..], 0, "nothing is refused"),
        (
            &["check", &good, "--machine", &machine],
            0,
            "00:1f.2 8086:2922 SATA controller: assignable",
        ),
        (&["check", &bad], 1, "bad.toml:5: guest a: kernel = \"kernel\": there is no such file"),
        (&["check", &bad, "--machine", &machine], 1, "bad.toml:5: guest a: kernel"),
        (&["check", &bad, "--json"], 1, "\"key\": \"kernel\""),
        (&["check", &wrong, "--machine", &machine], 1, "wrong.toml:1: this is not TOML"),
        (&["check", &good, "--machine", &good], 2, ""),
        (&["check", &good, "--machine", "/no/such.toml"], 2, ""),
        (&["check"], 2, ""),
    ] {
        let outcome = folder.nexit("check", arguments);
        assert_eq!(outcome.status, Some(status), "{arguments:?}: {outcome}");
        assert!(outcome.output.contains(words), "{arguments:?}: {outcome}");
        assert_eq!(outcome.errors.is_empty(), status == 0, "{outcome}");
    }
}

#[test]
fn what_init_writes_is_what_check_wants_and_no_file_is_overwritten() {
    let folder = Folder::new("init");
    let machine = folder.path("machine.toml");
    q35(&[], Some("")).write(&machine).unwrap();
    let (machine, output) =
        (machine.display().to_string(), folder.path("n.toml").display().to_string());
    let arguments = ["init", "--machine", &machine, "--output", &output];
    let outcome = folder.nexit("init", &arguments);
    assert_eq!(outcome.status, Some(0), "{outcome}");
    let text = std::fs::read_to_string(&output).unwrap();
    assert_refused(&folder.nexit("again", &arguments), "it is there already: remove it");
    let printed = folder.nexit("print", &["init", "--machine", &machine]);
    assert_eq!(printed.output.trim(), text.trim());
    let kernel = nexit_tests::Payload::new("ends").path().display().to_string();
    let text = text.replace("\"vmlinuz\"", &format!("\"{kernel}\""));
    let initrd = |line: &&str| !line.starts_with("initrd");
    let text: String = text.lines().filter(initrd).map(|line| line.to_owned() + "\n").collect();
    let edited = folder.write("edited.toml", text);
    let outcome = folder.nexit("check", &["check", &edited, "--machine", &machine]);
    assert_eq!(outcome.status, Some(0), "{outcome}");
}

#[test]
fn wrong_usage_is_refused() {
    let folder = Folder::new("usage");
    for arguments in [&["run"][..], &["fly"], &["run", "--config", "x", "--emulator", "xen"]] {
        let outcome = folder.nexit("usage", arguments);
        assert_eq!(outcome.status, Some(2), "{outcome}");
    }
}

#[test]
fn a_run_that_takes_too_long_is_ended_with_status_124() {
    let folder = Folder::new("timeout");
    folder.write("kernel", "");
    let config = folder.write("config.toml", GUEST);
    // -S: QEMU waits before the first instruction.
    let options = ["run", "--unchecked", "--config", &config, "--timeout", "2", "--", "-S"];
    let outcome = folder.nexit("run", &options);
    assert_eq!(outcome.status, Some(124), "{outcome}");
    assert!(outcome.errors.contains("after 2 s"), "{outcome}");
}

/// Names in a folder of the image's UEFI partition: the second entry of its GPT (UEFI
/// Specification, "GUID Partition Table (GPT) Disk Layout").
fn partition_names(image: &str, folder: &str) -> Option<String> {
    let bytes = std::fs::read(image).ok()?;
    let first_block = bytes.get(2 * 512 + 128 + 32..)?.first_chunk()?;
    let offset = u64::from_le_bytes(*first_block) * 512;
    let image = format!("{image}@@{offset}");
    let list = Command::new("mdir").args(["-b", "-i", &image, folder]).output().ok()?;
    Some(String::from_utf8_lossy(&list.stdout).into_owned())
}

#[test]
fn an_image_holds_every_file_by_its_name_for_both_firmwares() {
    let folder = Folder::new("image");
    folder.write("kernel", "a kernel");
    let config = folder.write("other-name.toml", GUEST);
    for loader in ["grub", "native"] {
        let image = folder.path("nexit.iso").display().to_string();
        let options =
            ["image", "--unchecked", "--config", &config, "--output", &image, "--loader", loader];
        let outcome = folder.nexit(loader, &options);
        assert_eq!(outcome.status, Some(0), "{outcome}");
        let list =
            Command::new("xorriso").args(["-indev", &image, "-find", "/nexit"]).output().unwrap();
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        let partition = partition_names(&image, "::/nexit").unwrap();
        for name in ["nexit.elf", "nexit.toml", "kernel"] {
            assert!(list.contains(&format!("/nexit/{name}'")), "{name}: {list}");
            assert!(partition.contains(&format!("/nexit/{name}")), "{name}: {partition}");
        }
        let loaders = partition_names(&image, "::/EFI/BOOT").unwrap();
        assert!(loaders.contains("BOOTX64.EFI"), "{loader}: {loaders}");
    }
}
