//! The program `nexit` itself: what it refuses, its exit status, what it puts into images. No guest
//! is run here.

use std::process::Command;

use nexit_tests::{Devices, Folder, Outcome};

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
    assert_refused(&outcome, "no-kernel/kernel, and there is no such file");
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
    let options = ["run", "--config", &config, "--timeout", "2", "--", "-S"];
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
        let options = ["image", "--config", &config, "--output", &image, "--loader", loader];
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
