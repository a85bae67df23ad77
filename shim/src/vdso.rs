//! The vDSO of a process that came from another kernel: kept at its address, answered by this kernel.
//!
//! A program caches pointers into `[vdso]` (libc does at start), so a function must answer there for life. The old
//! code itself cannot: it reads `[vvar]` pages whose layout and contents belong to the kernel it came from. So the
//! old image is put back at its old address with every entry point overwritten by a jump to the same function of the
//! vDSO that this kernel gave the process, or, where this kernel's lacks it, by the plain system call:
//!
//! ```text
//!   old image (bytes of another kernel, at its old address)      this kernel's vDSO (anywhere)
//!   clock_gettime:  movabs rax, NEW; jmp rax  ────────────────▶  clock_gettime: …reads its own vvar…
//!   getcpu:         mov eax, 309; syscall; ret                   (has no getcpu)
//! ```
//!
//! Nothing of the old code runs afterwards, and no old `[vvar]` is needed. One rule follows for whoever freezes a
//! process: no thread may be *inside* the vDSO (instruction pointer in `[vdso]`) when its state is taken; step it out.
//!
//! Source: `arch/x86/entry/vdso/` and `Documentation/ABI/stable/vdso` of the kernel; the ELF part is the gABI's.

use std::collections::BTreeMap;

use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};
use object::LittleEndian as LE;
use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn, FileHeader, GnuHashTable, HashTable, ProgramHeader, Sym};

/// Largest image accepted, in bytes. A real one has two pages; this bounds what a hostile image can cost.
const LIMIT: usize = 1 << 20;

/// Length of `jmp rel32`, the shortest way out of an entry point.
const SHORT_JUMP: u64 = 5;

/// What is wrong with the bytes of a vDSO.
#[derive(Debug, thiserror::Error)]
pub enum VdsoError {
    /// Not a bounded, well-formed ELF shared object of this architecture.
    #[error("the vDSO image is not a usable ELF shared object ({0}); the image was damaged or is not of x86_64")]
    Malformed(&'static str),
    /// An entry point that can be answered neither by this kernel's vDSO nor by a system call.
    #[error("the vDSO function {0:?} is not known here; restore on a host with the kernel that the program came from")]
    UnknownFunction(String),
    /// An entry point that has no room for a jump.
    #[error("the vDSO function {0:?} is too short to be redirected, and there is no free space for a detour")]
    NoRoom(String),
}

impl From<object::read::Error> for VdsoError {
    fn from(_: object::read::Error) -> Self {
        Self::Malformed("its ELF structures are inconsistent")
    }
}

/// A function of a vDSO: where it is in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Bytes from the start of the image.
    pub offset: u64,
    /// In bytes, as the symbol table claims it.
    pub size: u64,
}

/// The functions of a vDSO, by name without the `__vdso_` prefix (both names are aliases of one function).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbols {
    functions: BTreeMap<String, Symbol>,
    /// Where the loaded segments end: bytes after it are padding.
    end: u64,
}

impl Symbols {
    /// The function `name` (without `__vdso_`), if the vDSO has it.
    pub fn get(&self, name: &str) -> Option<Symbol> {
        self.functions.get(name).copied()
    }

    /// Takes a function out, as if the kernel did not have it. For tests of what older kernels lack.
    pub fn remove(&mut self, name: &str) -> Option<Symbol> {
        self.functions.remove(name)
    }

    /// All functions in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Symbol)> {
        self.functions.iter().map(|(name, symbol)| (name.as_str(), *symbol))
    }
}

/// Finds the functions of the vDSO image `code`, as read from the memory at `[vdso]`.
///
/// Goes by the program headers and the dynamic section alone, as the kernel's ABI promises them (section headers may
/// be absent). Every offset that the image names is checked, so bytes from an untrusted image are fine.
///
/// # Errors
/// [`VdsoError::Malformed`].
pub fn parse(code: &[u8]) -> Result<Symbols, VdsoError> {
    if code.len() > LIMIT {
        return Err(VdsoError::Malformed("it is too large"));
    }
    let header = FileHeader64::<LE>::parse(code)?;
    let endian = header.endian()?;
    if header.e_machine(endian) != elf::EM_X86_64 {
        return Err(VdsoError::Malformed("it is of another architecture"));
    }
    let segments = header.program_headers(endian, code)?;
    // The vDSO is one loaded segment at address 0, so that addresses in it are offsets into `code`.
    let end = segments
        .iter()
        .filter(|segment| segment.p_type(endian) == elf::PT_LOAD)
        .map(|segment| segment.p_vaddr(endian).saturating_add(segment.p_memsz(endian)))
        .max()
        .ok_or(VdsoError::Malformed("it has no loaded segment"))?;
    if end > LIMIT as u64 {
        return Err(VdsoError::Malformed("its loaded segment is too large"));
    }
    let mut dynamic = None;
    for segment in segments {
        dynamic = dynamic.or(segment.dynamic(endian, code)?);
    }
    let dynamic = dynamic.ok_or(VdsoError::Malformed("it has no dynamic section"))?;
    let tag = |wanted| {
        dynamic
            .iter()
            .find(|entry| entry.d_tag(endian) == wanted)
            .map(|entry| entry.d_val(endian))
    };
    let table = |wanted| -> Option<&[u8]> { code.get(usize::try_from(tag(wanted)?).ok()?..) };

    // ELF says how many symbols there are only through a hash table; kernels have had either kind, or both.
    let count = match (table(elf::DT_HASH), table(elf::DT_GNU_HASH)) {
        (Some(hash), _) => HashTable::<FileHeader64<LE>>::parse(endian, hash)?.symbol_table_length(),
        (None, Some(hash)) => GnuHashTable::<FileHeader64<LE>>::parse(endian, hash)?
            .symbol_table_length(endian)
            .ok_or(VdsoError::Malformed("its hash table is inconsistent"))?,
        (None, None) => return Err(VdsoError::Malformed("it has no hash table")),
    };
    let symbols = table(elf::DT_SYMTAB).ok_or(VdsoError::Malformed("it has no symbol table"))?;
    let (symbols, _) = object::slice_from_bytes::<elf::Sym64<LE>>(symbols, count as usize)
        .map_err(|()| VdsoError::Malformed("its symbol table is cut off"))?;
    let strings = table(elf::DT_STRTAB).ok_or(VdsoError::Malformed("it has no string table"))?;

    let mut functions = BTreeMap::new();
    for symbol in symbols {
        let (offset, size) = (symbol.st_value(endian), symbol.st_size(endian));
        if symbol.st_type() != elf::STT_FUNC || symbol.st_shndx(endian) == elf::SHN_UNDEF {
            continue;
        }
        if offset >= code.len() as u64 {
            return Err(VdsoError::Malformed("one of its functions is outside"));
        }
        let name = strings.get(symbol.st_name(endian) as usize..).unwrap_or_default();
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = std::str::from_utf8(name).map_err(|_| VdsoError::Malformed("one of its names is no text"))?;
        let name = name.strip_prefix("__vdso_").unwrap_or(name);
        functions.insert(name.to_owned(), Symbol { offset, size });
    }
    Ok(Symbols { functions, end })
}

/// A copy of the vDSO image `old` whose entry points lead to the functions `new` of the vDSO mapped at `new_base`.
///
/// The jumps are absolute, so the copy works at any address; mapped at the old one it serves the program's cached
/// pointers. A function that `new` lacks becomes the plain system call. `sgx_enter_enclave` stays as it is: it reads
/// no kernel data. The registers that the replacements use (`rax`, `rcx`, `r11`) are free at a C function's entry.
///
/// # Errors
/// [`VdsoError`]: `old` is malformed, or has a function that cannot be redirected.
pub fn redirect(old: &[u8], new: &Symbols, new_base: u64) -> Result<Vec<u8>, VdsoError> {
    let symbols = parse(old)?;
    let mut copy = old.to_vec();

    // Padding behind everything in use: the detours of functions that are too short for their replacement go there.
    let used = copy
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last as u64 + 1);
    let mut free = used.max(symbols.end).next_multiple_of(16);

    let mut starts: Vec<u64> = symbols.functions.values().map(|symbol| symbol.offset).collect();
    starts.sort_unstable();
    let mut done = Vec::new();
    for (name, symbol) in &symbols.functions {
        if name == "sgx_enter_enclave" || done.contains(&symbol.offset) {
            continue;
        }
        done.push(symbol.offset);
        let patch = match new.get(name) {
            Some(target) => jump(new_base.wrapping_add(target.offset)),
            None => system_call(name).ok_or_else(|| VdsoError::UnknownFunction(name.clone()))?,
        };
        // Up to where it may be overwritten: its own end, the next function, the end of the image.
        let next = starts
            .iter()
            .copied()
            .find(|start| *start > symbol.offset)
            .unwrap_or(u64::MAX);
        let room = symbol
            .size
            .min(next - symbol.offset)
            .min(copy.len() as u64 - symbol.offset);
        if patch.len() as u64 <= room {
            put(&mut copy, symbol.offset, &patch);
        } else if room >= SHORT_JUMP && free + patch.len() as u64 <= copy.len() as u64 {
            put(&mut copy, free, &patch);
            // Both ends are in one image of at most LIMIT bytes: the distance fits 32 bits.
            let distance = (free - symbol.offset - SHORT_JUMP) as i32;
            let [a, b, c, d] = distance.to_le_bytes();
            put(&mut copy, symbol.offset, &[0xe9, a, b, c, d]);
            free = (free + patch.len() as u64).next_multiple_of(16);
        } else {
            return Err(VdsoError::NoRoom(name.clone()));
        }
    }
    Ok(copy)
}

/// Overwrites `image` at `offset`; the caller has checked that it fits.
fn put(image: &mut [u8], offset: u64, bytes: &[u8]) {
    let offset = offset as usize;
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// `goto target`, from anywhere.
fn jump(target: u64) -> Vec<u8> {
    let mut code = VecAssembler::<X64Relocation>::new(0);
    dynasm!(code
        ; .arch x64
        ; mov rax, QWORD target.cast_signed()
        ; jmp rax
    );
    assembled(code)
}

/// The function `name` of a vDSO as a plain system call. Arguments are in place: the fourth (`rcx`, which the kernel
/// wants in `r10`) is used by none of them. A vDSO function returns `-errno` as the system call does.
fn system_call(name: &str) -> Option<Vec<u8>> {
    let number = match name {
        "clock_gettime" => libc::SYS_clock_gettime,
        "clock_getres" => libc::SYS_clock_getres,
        "gettimeofday" => libc::SYS_gettimeofday,
        "time" => libc::SYS_time,
        "getcpu" => libc::SYS_getcpu,
        "getrandom" => libc::SYS_getrandom,
        _ => return None,
    } as i32;
    let mut code = VecAssembler::<X64Relocation>::new(0);
    if name == "getrandom" {
        // `opaque_len == ~0` asks for the parameters of the state that the caller keeps (lib/vdso/getrandom.c).
        // There is no such state here, and a caller that is told so uses the system call from then on.
        dynasm!(code
            ; .arch x64
            ; cmp r8, -1
            ; jne >call
            ; mov rax, -libc::ENOSYS
            ; ret
            ; call:
        );
    }
    dynasm!(code
        ; .arch x64
        ; mov eax, number
        ; syscall
        ; ret
    );
    Some(assembled(code))
}

/// The finished bytes. The labels above are all local and defined, so nothing is left to go wrong.
fn assembled(code: VecAssembler<X64Relocation>) -> Vec<u8> {
    code.finalize().expect("every label is defined")
}

#[cfg(test)]
mod tests {
    #![allow(unsafe_code)] // maps and calls the code that is made here

    use super::*;

    /// This process' own vDSO: its image and where it is.
    fn own() -> (Vec<u8>, u64) {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap();
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let (start, end) = (
            u64::from_str_radix(start, 16).unwrap(),
            u64::from_str_radix(end, 16).unwrap(),
        );
        // SAFETY: the range is a readable mapping of this process, which nothing changes.
        (
            unsafe { std::slice::from_raw_parts(start as *const u8, (end - start) as usize) }.to_vec(),
            start,
        )
    }

    /// `code` made executable, for the rest of the test process' life.
    fn executable(code: &[u8]) -> *const u8 {
        // SAFETY: a new anonymous mapping, filled within its length before it is made executable.
        unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let page = libc::mmap(std::ptr::null_mut(), code.len(), protection, flags, -1, 0);
            assert_ne!(page, libc::MAP_FAILED);
            page.cast::<u8>().copy_from_nonoverlapping(code.as_ptr(), code.len());
            assert_eq!(libc::mprotect(page, code.len(), libc::PROT_READ | libc::PROT_EXEC), 0);
            page.cast()
        }
    }

    /// Calls every function of the copy at `base` and compares with what the C library says.
    fn check(base: *const u8, symbols: &Symbols) {
        let at = |name| {
            symbols
                .get(name)
                .map(|symbol| base.wrapping_add(symbol.offset as usize))
        };
        // SAFETY: each address is the entry of a function of the signature that the ABI gives it; all pointers are
        // to local variables.
        unsafe {
            type TwoPointers = unsafe extern "C" fn(*mut libc::timeval, *mut libc::timezone) -> i64;
            type ClockGettime = unsafe extern "C" fn(i32, *mut libc::timespec) -> i64;
            type Getcpu = unsafe extern "C" fn(*mut u32, *mut u32, *mut u8) -> i64;
            type Time = unsafe extern "C" fn(*mut i64) -> i64;
            type Getrandom = unsafe extern "C" fn(*mut u8, usize, u32, *mut u8, usize) -> i64;
            let nanoseconds = |time: libc::timespec| time.tv_sec * 1_000_000_000 + time.tv_nsec;

            let clock_gettime: ClockGettime = std::mem::transmute(at("clock_gettime").unwrap());
            for clock in [libc::CLOCK_MONOTONIC, libc::CLOCK_REALTIME, libc::CLOCK_BOOTTIME] {
                let (mut before, mut now, mut after) = std::mem::zeroed();
                libc::clock_gettime(clock, &mut before);
                assert_eq!(clock_gettime(clock, &mut now), 0);
                libc::clock_gettime(clock, &mut after);
                assert!(
                    (nanoseconds(before)..=nanoseconds(after)).contains(&nanoseconds(now)),
                    "clock {clock}"
                );
            }
            assert_eq!(clock_gettime(9999, &mut std::mem::zeroed()), i64::from(-libc::EINVAL));

            let gettimeofday: TwoPointers = std::mem::transmute(at("gettimeofday").unwrap());
            let (mut before, mut now, mut after): (libc::timeval, libc::timeval, libc::timeval) = std::mem::zeroed();
            libc::gettimeofday(&mut before, std::ptr::null_mut());
            assert_eq!(gettimeofday(&mut now, std::ptr::null_mut()), 0);
            libc::gettimeofday(&mut after, std::ptr::null_mut());
            let key = |time: &libc::timeval| (time.tv_sec, time.tv_usec);
            assert!((key(&before)..=key(&after)).contains(&key(&now)));

            let time: Time = std::mem::transmute(at("time").unwrap());
            let (before, now, after) = (libc::time(&mut 0), time(std::ptr::null_mut()), libc::time(&mut 0));
            assert!(
                (before - 1..=after).contains(&now),
                "the coarse clock may lag by a tick"
            );

            let getcpu: Getcpu = std::mem::transmute(at("getcpu").unwrap());
            let (mut cpu, mut node) = (u32::MAX, u32::MAX);
            assert_eq!(getcpu(&mut cpu, &mut node, std::ptr::null_mut()), 0);
            assert!(cpu < 4096 && node < 4096);

            let clock_getres: ClockGettime = std::mem::transmute(at("clock_getres").unwrap());
            let (mut here, mut there) = std::mem::zeroed();
            assert_eq!(clock_getres(libc::CLOCK_MONOTONIC, &mut here), 0);
            libc::clock_getres(libc::CLOCK_MONOTONIC, &mut there);
            assert_eq!(nanoseconds(here), nanoseconds(there));

            if let Some(address) = at("getrandom") {
                let getrandom: Getrandom = std::mem::transmute(address);
                let mut bytes = [0_u8; 32];
                // No state given, of a length that is no kernel's: the documented way to the system call.
                assert_eq!(getrandom(bytes.as_mut_ptr(), 32, 0, std::ptr::null_mut(), 1), 32);
                assert_ne!(bytes, [0; 32]);
            }
        }
    }

    #[test]
    fn entry_points_lead_to_the_kernels_own() {
        let (image, base) = own();
        let symbols = parse(&image).unwrap();
        let copy = redirect(&image, &symbols, base).unwrap();
        assert_eq!(parse(&copy).unwrap(), symbols, "the copy is still a vDSO");
        check(executable(&copy), &symbols);
    }

    #[test]
    fn missing_functions_become_system_calls() {
        let (image, base) = own();
        let old = parse(&image).unwrap();
        for (name, _) in old.iter() {
            let mut new = old.clone();
            new.remove(name).unwrap();
            check(executable(&redirect(&image, &new, base).unwrap()), &old);
        }
        let none = executable(&redirect(&image, &Symbols::default(), base).unwrap());
        check(none, &old);
        if let Some(symbol) = old.get("getrandom") {
            type Query = unsafe extern "C" fn(*mut u8, usize, u32, *mut u8, usize) -> i64;
            // SAFETY: the entry point of a function of this signature; the query writes to the 64 bytes or to nothing.
            let answer = unsafe {
                let query: Query = std::mem::transmute(none.wrapping_add(symbol.offset as usize));
                query(std::ptr::null_mut(), 0, 0, [0_u8; 64].as_mut_ptr(), usize::MAX)
            };
            assert_eq!(answer, i64::from(-libc::ENOSYS));
        }
    }

    /// `image` with the sizes and offsets in its symbol table changed by `change`.
    fn with_symbols(image: &[u8], change: impl Fn(&str, u64, u64) -> (u64, u64)) -> Vec<u8> {
        let mut copy = image.to_vec();
        for (name, symbol) in parse(image).unwrap().iter() {
            let key: Vec<u8> = [symbol.offset.to_le_bytes(), symbol.size.to_le_bytes()].concat();
            let (offset, size) = change(name, symbol.offset, symbol.size);
            let new: Vec<u8> = [offset.to_le_bytes(), size.to_le_bytes()].concat();
            while let Some(place) = copy.windows(16).position(|window| window == key) {
                copy[place..place + 16].copy_from_slice(&new);
                if new == key {
                    break;
                }
            }
        }
        copy
    }

    #[test]
    fn short_functions_take_a_detour() {
        let (image, base) = own();
        let symbols = parse(&image).unwrap();
        let short = with_symbols(&image, |_, offset, _| (offset, 8));
        let copy = redirect(&short, &symbols, base).unwrap();
        assert_eq!(copy[symbols.get("time").unwrap().offset as usize], 0xe9);
        check(executable(&copy), &symbols);

        let tiny = with_symbols(&image, |_, offset, _| (offset, 4));
        assert!(matches!(redirect(&tiny, &symbols, base), Err(VdsoError::NoRoom(_))));
        let mut full = short;
        *full.last_mut().unwrap() = 1;
        assert!(matches!(redirect(&full, &symbols, base), Err(VdsoError::NoRoom(_))));
        let outside = with_symbols(&image, |_, _, size| (1 << 40, size));
        assert!(matches!(parse(&outside), Err(VdsoError::Malformed(_))));
    }

    #[test]
    fn damaged_images_do_no_harm() {
        let (image, base) = own();
        let symbols = parse(&image).unwrap();
        // A small generator of its own: the point is many different damages, not their quality.
        let mut seed = 1_u64;
        let mut random = |below: usize| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        for _ in 0..20_000 {
            let mut bad = image.clone();
            for _ in 0..=random(4) {
                // Mostly in the tables at the front, where it matters.
                let range = if random(4) == 0 { image.len() } else { 0x620 };
                bad[random(range)] = random(256) as u8;
            }
            if random(8) == 0 {
                bad.truncate(random(image.len()));
            }
            if let Ok(copy) = redirect(&bad, &symbols, base) {
                assert_eq!(copy.len(), bad.len());
            }
        }
        assert!(parse(&[]).is_err());
        assert!(parse(&vec![0; LIMIT + 1]).is_err());
    }
}
