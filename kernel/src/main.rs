//! The hypervisor image: takes over from `boot` and says what the loader left.
#![no_std]
#![no_main]

use core::fmt::{self, Write};

/// First port of COM1.
const COM1: u16 = 0x3f8;

/// The first serial port, polled, 115200 8N1.
struct Com1;

impl Com1 {
    fn init() {
        let setup = [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)];
        for (register, value) in setup {
            // SAFETY: COM1 belongs to nobody else, and its registers do no harm to memory.
            unsafe { outb(COM1 + register, value) };
        }
    }
}

impl Write for Com1 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: reading the line status register changes nothing but error flags.
            while unsafe { inb(COM1 + 5) } & 0x20 == 0 {}
            // SAFETY: sends a byte.
            unsafe { outb(COM1, byte) };
        }
        Ok(())
    }
}

/// # Safety
/// The port must be this code's to write.
unsafe fn outb(port: u16, value: u8) {
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack))
    };
}

/// # Safety
/// Reading the port must do no harm.
unsafe fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack))
    };
    value
}

/// Where `boot::entry` jumps to.
#[unsafe(no_mangle)]
extern "C" fn kernel_main(magic: u32, info: u64) -> ! {
    Com1::init();
    // SAFETY: these are the entry's own values, its page tables are still in use, and nothing has
    // been written to memory that is not the image's.
    let boot_info = unsafe { boot::entry::boot_info(magic, info) };
    let mut console = Com1;
    let _ = match boot_info {
        Ok(info) => print(&mut console, &info),
        Err(error) => writeln!(console, "nexit: {error}\r"),
    };
    halt()
}

fn print(console: &mut Com1, info: &boot::BootInfo<'_>) -> fmt::Result {
    writeln!(console, "nexit: loader {:?}, command line \"{}\"\r", info.loader, info.command_line)?;
    for region in info.memory.iter() {
        let range = region.range;
        let (start, end) = (range.start.as_u64(), range.end().as_u64());
        writeln!(console, "nexit: memory {start:#012x}..{end:#012x} {:?}\r", region.kind)?;
    }
    for module in &info.modules {
        let (start, length) = (module.range.start, module.range.length);
        let (name, words) = (module.name, module.command_line);
        writeln!(console, "nexit: module {name} \"{words}\" at {start}, {length} bytes\r")?;
    }
    for range in &info.loader_data {
        writeln!(console, "nexit: loader data at {}, {} bytes\r", range.start, range.length)?;
    }
    writeln!(console, "nexit: rsdp {:?}, efi {:?}\r", info.rsdp, info.efi_system_table)
}

fn halt() -> ! {
    loop {
        // SAFETY: interrupts are off and nobody waits for this CPU.
        unsafe { core::arch::asm!("hlt", options(nomem, nostack)) };
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let _ = writeln!(Com1, "nexit: {info}\r");
    halt()
}
