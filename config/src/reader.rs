//! From TOML's tables to [`Config`]: one function per key, then what must hold between guests.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use arch::Bdf;
use arch::msr::PortRange;
use arch::vcpu::InterruptMode;

use crate::document::{Item, Key, Table, Value};
use crate::error::{ConfigError, Problem};
use crate::{
    Afterwards, Config, Console, Devices, Gdb, GuestConfig, IntxConfig, MEMORY_UNIT, MIN_MEMORY,
    ModuleConfig, Places, Uart, value,
};

const TOP_KEYS: &str = "[[guest]], [[shared]], console, probe, share_cores and unsafe_no_iommu";
const GUEST_KEYS: &str = "name, cpus, memory, kernel, initrd, cmdline, modules, symbols, devices, \
                          except, interrupts, io_ports, intx, uart, gdb, pit, on_crash, on_reboot, \
                          unsafe_no_iommu";
const TAKES_GUESTS: &str = "a list of tables, each under a line [[guest]]";
const TAKES_FLAG: &str = "true or false";
const TAKES_NAME: &str = "1 to 64 printable characters without \" and \\, such as \"linux\"";
const TAKES_FILE: &str = "a file name such as \"vmlinuz\"";
const TAKES_CPUS: &str = "a list of CPU numbers such as [0, 1]";
const TAKES_MEMORY: &str = "a size in K, M or G such as \"512M\"";
const TAKES_CMDLINE: &str = "one line of text such as \"console=ttyS0\"";
const TAKES_MODULES: &str = "a list of file names, each with its arguments after it, such as \
                             [\"shell.bin verbose\"]";
const TAKES_DEVICES: &str = "a list of PCI functions such as [\"00:04.0\"], or \"all\"";
const TAKES_EXCEPT: &str = "a list of PCI functions such as [\"00:1f.0\"]";
const TAKES_AFTERWARDS: &str = "\"stop\" or \"restart\"";
const TAKES_AFTER_CRASH: &str = "\"stop\", \"restart\" or \"debug\"";
const TAKES_INTERRUPTS: &str = "\"exitless\", \"exiting\" or \"posted\"";
const TAKES_PORTS: &str = "a list of ports such as [\"0xf4\", \"0x3f0-0x3f7\"]";
const TAKES_INTX: &str = "a list of PCI functions, each with the global system interrupt that its \
                          pin is wired to (5, 9 to 11, or from 16 up), such as [\"00:05.0=21\"]";
const TAKES_CONSOLE: &str = "\"COM1\" to \"COM4\", the first port of a UART such as \"0x3e8\" (a \
                             multiple of 8 from 0x100 on), a serial card such as \"pci:05:00.0\", or \
                             \"none\"";
const TAKES_GDB: &str = "\"console\" (frames on the console's line), \"COM2\" or \"COM4\" (COM1 is the \
                         hypervisor's own, for all consoles)";
const TAKES_UART: &str = "\"COM2\" or \"COM4\" (COM1 is the hypervisor's own, for all consoles, and \
                          COM3 has the same interrupt line)";

/// Parses and checks the text of the configuration file.
///
/// # Errors
/// The first problem met, with its line.
pub fn parse(text: &str) -> Result<Config, ConfigError> {
    Reader {
        guests: Vec::new(),
        places: Places::default(),
        unsafe_no_iommu: false,
        console: None,
        probe: false,
        share_cores: false,
    }
    .file(&Table::parse(text)?)
}

pub(crate) struct Reader {
    pub(crate) guests: Vec<GuestConfig>,
    places: Places,
    unsafe_no_iommu: bool,
    console: Option<Console>,
    probe: bool,
    share_cores: bool,
}

impl Reader {
    fn file(mut self, table: &Table) -> Result<Config, ConfigError> {
        for (key, item) in table.iter() {
            match key.name.as_str() {
                "guest" => {
                    for guest in self.list("guest", TAKES_GUESTS, item)? {
                        self.guest(guest)?;
                    }
                }
                // Names guests, which may stand behind it.
                "shared" => {}
                "unsafe_no_iommu" => {
                    self.places.add("unsafe_no_iommu", key, item);
                    self.unsafe_no_iommu |= self.flag("unsafe_no_iommu", item)?;
                }
                "probe" => self.probe = self.flag("probe", item)?,
                "share_cores" => self.share_cores = self.flag("share_cores", item)?,
                "console" => self.console = Some(self.console(item)?),
                _ => return Err(self.unknown(key, "the file", TOP_KEYS)),
            }
        }
        if self.guests.is_empty() && !self.probe {
            return Err(ConfigError { line: None, problem: Problem::NoGuest });
        }
        if self.unsafe_no_iommu && self.guests.len() > 1 {
            return Err(ConfigError { line: None, problem: Problem::NoIommuForMany });
        }
        let shared = self.shared(table)?;
        let Self { guests, places, unsafe_no_iommu, console, probe, share_cores } = self;
        let config =
            Config { guests, unsafe_no_iommu, console, probe, share_cores, shared, places };
        if let Some(Console::Port(base)) = console {
            config.check_console(base)?;
        }
        config.check_card()?;
        config.check_gdb()?;
        Ok(config)
    }

    fn guest(&mut self, item: &Item) -> Result<(), ConfigError> {
        let Value::Table(table) = &item.value else {
            return Err(self.wrong_type("guest", TAKES_GUESTS, item));
        };
        let mut places = Places::default();
        for (key, value) in table.iter() {
            match GUEST_KEYS.split(", ").find(|known| *known == key.name) {
                Some(known) => places.add(known, key, value),
                None => return Err(self.unknown(key, "[[guest]]", GUEST_KEYS)),
            }
        }
        if let Some(value) = table.get("unsafe_no_iommu") {
            self.unsafe_no_iommu |= self.flag("unsafe_no_iommu", value)?;
        }
        let needed = |key: &'static str, example| {
            let problem = Problem::MissingKey { table: "[[guest]]", key, example };
            table.get(key).ok_or_else(|| self.error(item, problem))
        };
        let on_crash =
            table.get("on_crash").map_or(Ok(Afterwards::Stop), |v| self.after_crash(v))?;
        if on_crash == Afterwards::Debug {
            needed("gdb", "gdb = \"console\"")?;
        }
        let guest = GuestConfig {
            name: self.name(needed("name", "name = \"linux\"")?)?,
            cpus: self.cpus(needed("cpus", "cpus = [0]")?)?,
            memory: self.memory(needed("memory", "memory = \"512M\"")?)?,
            kernel: self.file_name("kernel", needed("kernel", "kernel = \"vmlinuz\"")?)?,
            initrd: table.get("initrd").map(|v| self.file_name("initrd", v)).transpose()?,
            cmdline: table.get("cmdline").map_or(Ok(String::new()), |v| self.cmdline(v))?,
            modules: table.get("modules").map_or(Ok(Vec::new()), |v| self.modules(v))?,
            symbols: table.get("symbols").map(|v| self.file_name("symbols", v)).transpose()?,
            devices: self.devices(table.get("devices"), table.get("except"))?,
            interrupts: table
                .get("interrupts")
                .map_or(Ok(InterruptMode::Exitless), |v| self.interrupts(v))?,
            io_ports: table.get("io_ports").map_or(Ok(Vec::new()), |v| self.io_ports(v))?,
            intx: table.get("intx").map_or(Ok(Vec::new()), |v| self.intx(v))?,
            uart: table.get("uart").map(|v| self.uart(v)).transpose()?,
            gdb: table.get("gdb").map(|v| self.gdb(v)).transpose()?,
            pit: table.get("pit").map_or(Ok(true), |v| self.flag("pit", v))?,
            on_crash,
            on_reboot: table
                .get("on_reboot")
                .map_or(Ok(Afterwards::Restart), |v| self.after_reboot(v))?,
            places,
        };
        self.guests.push(guest);
        Ok(())
    }

    /// A name.
    pub(crate) fn printable<'v>(&self, item: &'v Item) -> Result<&'v str, ConfigError> {
        let name = self.string("name", TAKES_NAME, item)?;
        let printable = |c: char| !c.is_control() && c != '"' && c != '\\';
        if name.trim().is_empty() || name.chars().count() > 64 || !name.chars().all(printable) {
            return Err(self.bad_value("name", TAKES_NAME, item, name));
        }
        Ok(name)
    }

    fn name(&self, item: &Item) -> Result<String, ConfigError> {
        let name = self.printable(item)?;
        self.not_twice("guest name", name, item, |guest| guest.name == name)?;
        Ok(name.to_string())
    }

    fn file_name(&self, key: &'static str, item: &Item) -> Result<String, ConfigError> {
        let name = self.string(key, TAKES_FILE, item)?;
        if name.trim().is_empty() || name.chars().any(char::is_control) {
            return Err(self.bad_value(key, TAKES_FILE, item, name));
        }
        Ok(name.to_string())
    }

    fn cmdline(&self, item: &Item) -> Result<String, ConfigError> {
        let line = self.string("cmdline", TAKES_CMDLINE, item)?;
        if line.chars().any(char::is_control) {
            return Err(self.bad_value("cmdline", TAKES_CMDLINE, item, line));
        }
        Ok(line.to_string())
    }

    fn memory(&self, item: &Item) -> Result<u64, ConfigError> {
        let text = self.string("memory", TAKES_MEMORY, item)?;
        let bytes =
            value::size(text).ok_or_else(|| self.bad_value("memory", TAKES_MEMORY, item, text))?;
        if bytes < MIN_MEMORY || !bytes.is_multiple_of(MEMORY_UNIT) {
            return Err(self.error(item, Problem::Memory { bytes }));
        }
        Ok(bytes)
    }

    fn interrupts(&self, item: &Item) -> Result<InterruptMode, ConfigError> {
        match self.string("interrupts", TAKES_INTERRUPTS, item)? {
            "exitless" => Ok(InterruptMode::Exitless),
            "exiting" => Ok(InterruptMode::Exiting),
            "posted" => Ok(InterruptMode::Posted),
            other => Err(self.bad_value("interrupts", TAKES_INTERRUPTS, item, other)),
        }
    }

    fn after_crash(&self, item: &Item) -> Result<Afterwards, ConfigError> {
        const KEY: &str = "on_crash";
        match self.string(KEY, TAKES_AFTER_CRASH, item)? {
            "stop" => Ok(Afterwards::Stop),
            "restart" => Ok(Afterwards::Restart),
            "debug" => Ok(Afterwards::Debug),
            other => Err(self.bad_value(KEY, TAKES_AFTER_CRASH, item, other)),
        }
    }

    fn after_reboot(&self, item: &Item) -> Result<Afterwards, ConfigError> {
        const KEY: &str = "on_reboot";
        match self.string(KEY, TAKES_AFTERWARDS, item)? {
            "stop" => Ok(Afterwards::Stop),
            "restart" => Ok(Afterwards::Restart),
            other => Err(self.bad_value(KEY, TAKES_AFTERWARDS, item, other)),
        }
    }

    fn modules(&self, item: &Item) -> Result<Vec<ModuleConfig>, ConfigError> {
        let mut modules = Vec::new();
        for entry in self.list("modules", TAKES_MODULES, item)? {
            let text = self.string("modules", TAKES_MODULES, entry)?;
            let (file, args) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
            if file.is_empty() || text.chars().any(char::is_control) {
                return Err(self.bad_value("modules", TAKES_MODULES, entry, text));
            }
            modules.push(ModuleConfig { file: file.to_string(), args: args.trim().to_string() });
        }
        Ok(modules)
    }

    fn cpus(&self, item: &Item) -> Result<Vec<u32>, ConfigError> {
        let mut cpus = Vec::new();
        for entry in self.list("cpus", TAKES_CPUS, item)? {
            let Value::Integer(number) = entry.value else {
                return Err(self.wrong_type("cpus", TAKES_CPUS, entry));
            };
            let text = number.to_string();
            let cpu = u32::try_from(number)
                .map_err(|_| self.bad_value("cpus", TAKES_CPUS, entry, &text))?;
            self.not_twice("CPU", cpu, entry, |guest| guest.cpus.contains(&cpu))?;
            self.not_again("cpus", TAKES_CPUS, entry, &cpus, &cpu, &text)?;
            cpus.push(cpu);
        }
        if cpus.is_empty() {
            let problem = Problem::EmptyList { key: "cpus", example: "cpus = [0]" };
            return Err(self.error(item, problem));
        }
        Ok(cpus)
    }

    fn devices(
        &self,
        devices: Option<&Item>,
        except: Option<&Item>,
    ) -> Result<Devices, ConfigError> {
        let all = devices.and_then(|item| Some((item, item.string()?)));
        match (all, except) {
            (Some((item, "all")), _) => {
                let has_all = |guest: &GuestConfig| matches!(guest.devices, Devices::All { .. });
                self.not_twice("devices =", "\"all\"", item, has_all)?;
                let except = except.map(|item| self.functions("except", TAKES_EXCEPT, item));
                Ok(Devices::All { except: except.transpose()?.unwrap_or_default() })
            }
            (Some((item, other)), _) => Err(self.bad_value("devices", TAKES_DEVICES, item, other)),
            (None, Some(item)) => Err(self.error(item, Problem::ExceptWithoutAll)),
            (None, None) => {
                let listed = devices.map(|item| self.functions("devices", TAKES_DEVICES, item));
                Ok(Devices::Listed(listed.transpose()?.unwrap_or_default()))
            }
        }
    }

    fn functions(
        &self,
        key: &'static str,
        takes: &'static str,
        item: &Item,
    ) -> Result<Vec<Bdf>, ConfigError> {
        let mut functions = Vec::new();
        for entry in self.list(key, takes, item)? {
            let text = self.string(key, takes, entry)?;
            let Ok(function) = text.parse::<Bdf>() else {
                return Err(self.bad_value(key, takes, entry, text));
            };
            // What another guest lists may well be excepted here.
            self.not_twice("device", function, entry, |guest| {
                key == "devices"
                    && matches!(&guest.devices, Devices::Listed(list) if list.contains(&function))
            })?;
            self.not_again(key, takes, entry, &functions, &function, text)?;
            functions.push(function);
        }
        Ok(functions)
    }

    fn io_ports(&self, item: &Item) -> Result<Vec<PortRange>, ConfigError> {
        let mut ranges = Vec::new();
        for entry in self.list("io_ports", TAKES_PORTS, item)? {
            let text = self.string("io_ports", TAKES_PORTS, entry)?;
            let range = value::ports(text)
                .ok_or_else(|| self.bad_value("io_ports", TAKES_PORTS, entry, text))?;
            self.not_twice("port", text, entry, |guest| guest.has_ports(range))?;
            ranges.push(range);
        }
        Ok(ranges)
    }

    fn intx(&self, item: &Item) -> Result<Vec<IntxConfig>, ConfigError> {
        let mut lines = Vec::new();
        for entry in self.list("intx", TAKES_INTX, item)? {
            let text = self.string("intx", TAKES_INTX, entry)?;
            let line =
                value::intx(text).ok_or_else(|| self.bad_value("intx", TAKES_INTX, entry, text))?;
            let same = |other: &IntxConfig| other.gsi == line.gsi;
            let which = format!("{} of {}", line.gsi, line.function);
            self.not_twice("interrupt line", which, entry, |guest| guest.intx.iter().any(same))?;
            let functions: Vec<Bdf> = lines.iter().map(|line: &IntxConfig| line.function).collect();
            self.not_again("intx", TAKES_INTX, entry, &functions, &line.function, text)?;
            lines.push(line);
        }
        Ok(lines)
    }

    fn console(&self, item: &Item) -> Result<Console, ConfigError> {
        let text = self.string("console", TAKES_CONSOLE, item)?;
        Console::named(text).ok_or_else(|| self.bad_value("console", TAKES_CONSOLE, item, text))
    }

    /// Nobody gets its ports or its line.
    fn gdb(&self, item: &Item) -> Result<Gdb, ConfigError> {
        let name = self.string("gdb", TAKES_GDB, item)?;
        let gdb = Gdb::named(name).ok_or_else(|| self.bad_value("gdb", TAKES_GDB, item, name))?;
        let same = |guest: &GuestConfig| gdb != Gdb::Console && guest.gdb == Some(gdb);
        self.not_twice("UART", name, item, same)?;
        Ok(gdb)
    }

    fn uart(&self, item: &Item) -> Result<Uart, ConfigError> {
        let name = self.string("uart", TAKES_UART, item)?;
        let uart =
            Uart::named(name).ok_or_else(|| self.bad_value("uart", TAKES_UART, item, name))?;
        self.not_twice("UART", name, item, |guest| guest.uart == Some(uart))?;
        let same_line = |guest: &GuestConfig| guest.uart.is_some_and(|u| u.gsi() == uart.gsi());
        self.not_twice("interrupt line", uart.gsi(), item, same_line)?;
        self.not_twice("port of", name, item, |guest| guest.has_ports(uart.ports()))?;
        Ok(uart)
    }
}

/// Types and errors.
impl Reader {
    pub(crate) fn list<'v>(
        &self,
        key: &'static str,
        takes: &'static str,
        item: &'v Item,
    ) -> Result<&'v [Item], ConfigError> {
        item.list().ok_or_else(|| self.wrong_type(key, takes, item))
    }

    pub(crate) fn string<'v>(
        &self,
        key: &'static str,
        takes: &'static str,
        item: &'v Item,
    ) -> Result<&'v str, ConfigError> {
        item.string().ok_or_else(|| self.wrong_type(key, takes, item))
    }

    fn flag(&self, key: &'static str, item: &Item) -> Result<bool, ConfigError> {
        let Value::Boolean(flag) = item.value else {
            return Err(self.wrong_type(key, TAKES_FLAG, item));
        };
        Ok(flag)
    }

    /// Refuses what an earlier guest has.
    fn not_twice(
        &self,
        what: &'static str,
        which: impl ToString,
        item: &Item,
        has: impl Fn(&GuestConfig) -> bool,
    ) -> Result<(), ConfigError> {
        match self.guests.iter().find(|guest| has(guest)) {
            None => Ok(()),
            Some(owner) => {
                let (which, owner) = (which.to_string(), owner.name.clone());
                Err(self.error(item, Problem::Twice { what, which, owner }))
            }
        }
    }

    /// Refuses what stands in this same list already.
    pub(crate) fn not_again<T: PartialEq>(
        &self,
        key: &'static str,
        takes: &'static str,
        item: &Item,
        list: &[T],
        entry: &T,
        text: &str,
    ) -> Result<(), ConfigError> {
        if !list.contains(entry) {
            return Ok(());
        }
        Err(self.bad_value(key, takes, item, &format!("{text} for the second time")))
    }

    pub(crate) fn wrong_type(
        &self,
        key: &'static str,
        takes: &'static str,
        item: &Item,
    ) -> ConfigError {
        let found = match item.value {
            Value::String(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Boolean(_) => "a boolean",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        };
        self.error(item, Problem::WrongType { key, takes, found })
    }

    pub(crate) fn bad_value(
        &self,
        key: &'static str,
        takes: &'static str,
        item: &Item,
        found: &str,
    ) -> ConfigError {
        self.error(item, Problem::BadValue { key, takes, found: found.to_string() })
    }

    pub(crate) fn unknown(
        &self,
        key: &Key,
        table: &'static str,
        keys: &'static str,
    ) -> ConfigError {
        let problem = Problem::UnknownKey { key: key.name.clone(), table, keys };
        ConfigError { line: Some(key.line()), problem }
    }

    pub(crate) fn error(&self, item: &Item, problem: Problem) -> ConfigError {
        ConfigError { line: Some(item.line()), problem }
    }
}
