//! The order of things: files, information, the last look at the memory map, the jump.

use crate::error::LoadError;
use crate::files::{self, BootFile};
use crate::pages::Pages;
use crate::trampoline::Trampoline;
use ::boot::multiboot2 as tag;
use arrayvec::ArrayString;
use core::convert::Infallible;
use core::ffi::c_void;
use uefi::boot::{self, MemoryType, OpenProtocolAttributes, OpenProtocolParams};
use uefi::mem::memory_map::{MemoryMap, MemoryMapOwned};
use uefi::proto::console::gop::{GraphicsOutput, PixelFormat};
use uefi::proto::loaded_image::LoadedImage;
use uefi::table::cfg::ConfigTableEntry;
use uefi_loader::elf::Image;
use uefi_loader::information::{Full, Information};
use uefi_loader::placement::{self, Descriptor};

/// Room for all tags but the EFI memory map: 64 modules with the longest names take 10 KiB.
const TAGS_SIZE: usize = 16 << 10;
/// By how much the EFI memory map may grow until boot services are over.
const MAP_GROWTH: usize = 16 << 10;

/// Loads everything and enters the image; comes back only with what went wrong.
pub(crate) fn load() -> Result<Infallible, LoadError> {
    let mut folder = files::open_folder()?;
    let file = files::read_image(&mut folder)?;
    let image = Image::parse(file.bytes()).map_err(|_| LoadError::NotAnImage)?;
    let range = image.range();
    // The file was read before the image's address was known: move it out of the way.
    let mut staged = Pages::allocate(file.length(), MemoryType::LOADER_DATA, &range)?;
    staged.bytes_mut().copy_from_slice(file.bytes());
    drop(file);
    let modules = files::read_modules(&mut folder, &range)?;
    drop(folder);

    let size = TAGS_SIZE + MAP_GROWTH + memory_map()?.buffer().len();
    let mut block = Pages::allocate(size, MemoryType::LOADER_DATA, &range)?;
    let trampoline = Trampoline::new(&image, &staged, block.address(), &range)?;
    let no_room = |_: Full| LoadError::TooManyFiles;
    let mut information = Information::new(block.bytes_mut()).map_err(no_room)?;
    describe(&mut information, &modules).map_err(no_room)?;
    add_rsdp(&mut information)?.map_err(no_room)?;
    add_framebuffer(&mut information).map_err(no_room)?;

    let descriptors = |map: &MemoryMapOwned| {
        placement::check(
            range.clone(),
            map.entries().map(|entry| Descriptor {
                kind: entry.ty.0,
                start: entry.phys_start,
                pages: entry.page_count,
            }),
        )
    };
    descriptors(&memory_map()?).map_err(LoadError::Taken)?;
    uefi::println!("Nexit: {} files loaded, entering the image", modules.len() + 1);

    // SAFETY: no protocol is open, and from here on nothing asks the firmware for anything.
    let map = unsafe { boot::exit_boot_services(None) };
    let (size, version) = (map.meta().desc_size as u32, map.meta().desc_version);
    let parts = [&size.to_le_bytes()[..], &version.to_le_bytes(), map.buffer()];
    let finished = information.tag(tag::EFI_MEMORY_MAP, &parts).and_then(|()| information.finish());
    if finished.is_err() {
        // No console is left to say it on; the map has more than doubled under our hands.
        uefi::runtime::reset(uefi::runtime::ResetType::COLD, uefi::Status::BUFFER_TOO_SMALL, None);
    }
    // SAFETY: boot services are over, the information is complete, and `placement` found that the
    // image's range may be overwritten.
    unsafe { trampoline.enter() }
}

fn memory_map() -> Result<MemoryMapOwned, LoadError> {
    boot::memory_map(MemoryType::LOADER_DATA).map_err(|_| LoadError::NoMemory { bytes: MAP_GROWTH })
}

/// Adds the loader's name, the command line and the modules.
fn describe(information: &mut Information<'_>, modules: &[BootFile]) -> Result<(), Full> {
    information.tag(tag::LOADER_NAME, &[tag::UEFI_LOADER_NAME.as_bytes(), b"\0"])?;
    information.tag(tag::COMMAND_LINE, &[command_line().as_bytes(), b"\0"])?;
    for file in modules {
        let start = file.pages.address();
        let end = start + file.pages.length() as u32;
        let range = [start.to_le_bytes(), end.to_le_bytes()];
        information.tag(tag::MODULE, &[range.as_flattened(), file.name.as_bytes(), b"\0"])?;
    }
    let table = uefi::table::system_table_raw().map_or(0, |table| table.as_ptr() as u64);
    information.tag(tag::EFI64_SYSTEM_TABLE, &[&table.to_le_bytes()])
}

/// The load options, if the boot manager or the shell gave text.
fn command_line() -> ArrayString<1024> {
    let mut text = ArrayString::new();
    let image = boot::open_protocol_exclusive::<LoadedImage>(boot::image_handle());
    let written = image.ok().and_then(|image| {
        image.load_options_as_cstr16().ok().and_then(|line| line.as_str_in_buf(&mut text).ok())
    });
    if written.is_none() {
        text.clear();
    }
    text
}

/// Adds a copy of the Root System Description Pointer; that of ACPI 2.0 if there is one.
fn add_rsdp(information: &mut Information<'_>) -> Result<Result<(), Full>, LoadError> {
    let find = |guid, kind, size| {
        let table = uefi::system::with_config_table(|entries| {
            entries.iter().find(|entry| entry.guid == guid).map(|entry| entry.address)
        });
        table
            .filter(|address: &*const c_void| !address.is_null())
            .map(|address| (address, kind, size))
    };
    let (address, kind, size) = find(ConfigTableEntry::ACPI2_GUID, tag::RSDP_2, 36)
        .or_else(|| find(ConfigTableEntry::ACPI_GUID, tag::RSDP_1, 20))
        .ok_or(LoadError::NoRsdp)?;
    // SAFETY: the firmware's own table; this is the size that the ACPI revision gives it.
    let rsdp = unsafe { core::slice::from_raw_parts(address.cast::<u8>(), size) };
    Ok(information.tag(kind, &[rsdp]))
}

/// Adds the framebuffer of the firmware's screen, if it has 32 bits a pixel. The mode stays as
/// the firmware has set it, so that a screen that shows the firmware's text also shows ours.
fn add_framebuffer(information: &mut Information<'_>) -> Result<(), Full> {
    let Ok(handle) = boot::get_handle_for_protocol::<GraphicsOutput>() else { return Ok(()) };
    let parameters = OpenProtocolParams { handle, agent: boot::image_handle(), controller: None };
    // SAFETY: the protocol is only read, and stays while boot services last. To open it exclusively
    // would take the firmware's own text off the screen.
    let opened = unsafe {
        boot::open_protocol::<GraphicsOutput>(parameters, OpenProtocolAttributes::GetProtocol)
    };
    let Ok(mut screen) = opened else { return Ok(()) };
    let mode = screen.current_mode_info();
    if !matches!(mode.pixel_format(), PixelFormat::Rgb | PixelFormat::Bgr) {
        return Ok(());
    }
    let start = screen.frame_buffer().as_mut_ptr() as u64;
    let (width, height) = mode.resolution();
    let words = [mode.stride() * 4, width, height].map(|word| (word as u32).to_le_bytes());
    let kind = [32, ::boot::DIRECT_COLOUR, 0, 0];
    information.tag(tag::FRAMEBUFFER, &[&start.to_le_bytes(), words.as_flattened(), &kind])
}
