#![allow(unsafe_code)] // XGETBV can only be asked with an instruction of its own
//! The signal frame that brings a thread back: `rt_sigreturn` is the one system call that loads every register at
//! once, so the restorer ends with it.
//!
//! ```text
//!   frame address ─▶ pretcode                  8   not read: nothing returns through it
//!                    struct ucontext         304   flags, alternate stack, sigcontext (general registers), mask
//!                    siginfo                 128   not read
//!                    …                             up to the next multiple of 64
//!   fpstate ───────▶ legacy area             512   x87, SSE; at 464 `struct _fpx_sw_bytes`
//!                    XSAVE header             64   which components follow
//!                    components                    AVX, AVX-512, PKRU, … at the offsets of *this* CPU
//!                    FP_XSTATE_MAGIC2          4
//! ```
//!
//! What it does not restore: `fs_base` and `gs_base` (`arch_prctl` before it), the selectors `ds`, `es`, `fs`, `gs`
//! (zero in every ordinary program), and restart state (it sets `orig_rax` to -1: none).
//!
//! Source: `arch/x86/include/uapi/asm/sigcontext.h`, `arch/x86/kernel/signal_64.c`, `arch/x86/kernel/fpu/signal.c`;
//! Intel's manual, volume 1, chapter 13, for the XSAVE area.

use std::arch::x86_64::{__cpuid, __cpuid_count, _fxsave, _xgetbv};

/// Bytes of the legacy area and the XSAVE header: present on every CPU with XSAVE.
const HEADER_END: usize = 576;
/// `sizeof(struct rt_sigframe)`.
const FRAME: usize = 440;
/// Longest extended state that is looked at (AMX makes it 11 KiB): bounds what a hostile image can cost.
const LIMIT: usize = 64 << 10;

const MXCSR: usize = 24;
const MXCSR_MASK: usize = 28;
const SW_RESERVED: usize = 464;
const XSTATE_BV: usize = 512;
const XCOMP_BV: usize = 520;

/// `FP_XSTATE_MAGIC1` and `FP_XSTATE_MAGIC2`.
const MAGIC: [u32; 2] = [0x4650_5853, 0x4650_5845];
/// `UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS`: take the extended state, and `ss` as it stands.
const UC_FLAGS: u64 = 1 | 2 | 4;

/// x87 and SSE: in the legacy area, without an offset of their own.
const LEGACY: u64 = 0b11;
/// AMX tile data: the one component that a process must ask for (`ARCH_REQ_XCOMP_PERM`) before it may be loaded.
const TILE_DATA: u64 = 1 << 18;

/// Why a thread's extended state cannot be loaded here.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SigframeError {
    /// Bytes that are no extended state of any CPU.
    #[error("the extended register state is malformed ({0}); the image was damaged")]
    Malformed(&'static str),
    /// Well-formed, but its offsets are of no known family of CPUs.
    #[error(
        "the extended register state ({length} bytes, features {features:#x}) is of an unknown CPU; \
             restore on a host like the one it came from"
    )]
    UnknownLayout {
        /// In bytes.
        length: usize,
        /// XCR0 of the CPU that it came from.
        features: u64,
    },
    /// The thread has live values in registers that do not exist here.
    #[error("the program uses {0} registers, which this CPU does not offer; restore on a host that has them")]
    Unsupported(String),
    /// An address that would put the frame across the end of the address space.
    #[error("no signal frame can be at address {0:#x}; choose one in the lower half, aligned to 8")]
    Address(u64),
}

/// The alternate signal stack, as `sigaltstack` gave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AlternateStack {
    /// Lowest address.
    pub address: u64,
    /// `SS_DISABLE`, `SS_ONSTACK`, `SS_AUTODISARM`.
    pub flags: i32,
    /// In bytes.
    pub size: u64,
}

/// A frame to be written at the address that [`build`] got.
#[derive(Clone, Debug)]
pub struct Frame {
    /// At most [`max_size`] bytes.
    pub bytes: Vec<u8>,
    /// What `rsp` must be when `rt_sigreturn` is called.
    pub rsp: u64,
}

/// How many bytes a frame can have on this CPU, whatever its address: what to reserve for it.
pub fn max_size() -> usize {
    FRAME + 63 + Layout::here().size() + 4
}

/// Builds the frame to be put at `frame_address` (aligned to 8) for a thread with the general registers `regs`, the
/// extended state `xstate` (as NT_X86_XSTATE has it, of this CPU or of another), the signal mask `blocked` (bit 0 is
/// signal 1) and the alternate stack `altstack`.
///
/// Must be called on the CPU that the frame is for: the components are laid out as it wants them.
///
/// # Errors
/// [`SigframeError`]; nothing in `xstate` is trusted.
pub fn build(
    frame_address: u64,
    regs: &libc::user_regs_struct,
    xstate: &[u8],
    blocked: u64,
    altstack: AlternateStack,
) -> Result<Frame, SigframeError> {
    let here = Layout::here();
    let state = adapt_to(&here, mxcsr_mask(), xstate)?;
    if !frame_address.is_multiple_of(8) || frame_address > (1 << 47) - (LIMIT as u64) {
        return Err(SigframeError::Address(frame_address));
    }
    let fpstate = (frame_address + FRAME as u64).next_multiple_of(64);

    let mut bytes = Vec::with_capacity(max_size());
    let mut put = |words: &[u64]| words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    put(&[0]); // pretcode
    put(&[UC_FLAGS, 0]); // uc_flags, uc_link
    put(&[
        altstack.address,
        u64::from(altstack.flags.cast_unsigned()),
        altstack.size,
    ]);
    put(&[
        regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ]);
    put(&[
        regs.rdi,
        regs.rsi,
        regs.rbp,
        regs.rbx,
        regs.rdx,
        regs.rax,
        regs.rcx,
        regs.rsp,
        regs.rip,
        regs.eflags,
    ]);
    put(&[regs.cs & 0xffff | (regs.ss & 0xffff) << 48]); // cs, gs, fs, ss: 16 bits each
    put(&[0, 0, 0, 0]); // err, trapno, oldmask, cr2: for people and debuggers
    put(&[fpstate, 0, 0, 0, 0, 0, 0, 0, 0]); // fpstate, reserved
    put(&[blocked]);
    bytes.resize((fpstate - frame_address) as usize, 0); // siginfo, padding
    bytes.extend(&state);
    bytes.extend(MAGIC[1].to_le_bytes());
    // The kernel finds the frame one word below the stack pointer: a handler's `ret` took `pretcode` off.
    Ok(Frame {
        bytes,
        rsp: frame_address + 8,
    })
}

/// Rewrites an extended state, as NT_X86_XSTATE gave it on some CPU, into the form that a signal frame has on this
/// one: its component offsets, its total size, `_fpx_sw_bytes` filled in.
///
/// # Errors
/// [`SigframeError::Unsupported`] names a component that holds values and does not exist here, or with another size.
pub fn adapt(xstate: &[u8]) -> Result<Vec<u8>, SigframeError> {
    adapt_to(&Layout::here(), mxcsr_mask(), xstate)
}

fn adapt_to(here: &Layout, mxcsr_mask: u32, xstate: &[u8]) -> Result<Vec<u8>, SigframeError> {
    use SigframeError::{Malformed, UnknownLayout, Unsupported};
    if !(HEADER_END..=LIMIT).contains(&xstate.len()) {
        return Err(Malformed("impossible length"));
    }
    // The kernel leaves XCR0 of the source here (copy_xstate_to_uabi_buf() in arch/x86/kernel/fpu/xstate.c).
    let features = word(xstate, SW_RESERVED);
    let used = word(xstate, XSTATE_BV);
    if features & LEGACY != LEGACY || used & !features != 0 || word(xstate, XCOMP_BV) != 0 {
        return Err(Malformed("inconsistent header"));
    }
    let mxcsr = u32::from_le_bytes(xstate[MXCSR..MXCSR + 4].try_into().expect("four bytes"));
    if mxcsr & !mxcsr_mask != 0 {
        return Err(Malformed("reserved bits of MXCSR are set"));
    }
    // The bytes do not say where their components are, but there are few families, and their sizes tell them apart.
    let source = [
        here.restricted(features),
        Layout::intel(features),
        Layout::packed(features),
    ];
    let source = source
        .into_iter()
        .flatten()
        .find(|layout| layout.size() == xstate.len());
    let source = source.ok_or(UnknownLayout {
        length: xstate.len(),
        features,
    })?;

    let mut state = vec![0; here.size()];
    state[..SW_RESERVED].copy_from_slice(&xstate[..SW_RESERVED]);
    let mut kept = used & LEGACY;
    for component in source.components() {
        let from = source.range(component);
        // All zero is the initial state of each of these, which XRSTOR gives to what the header does not name.
        if used & 1 << component == 0 || xstate[from.clone()].iter().all(|byte| *byte == 0) {
            continue;
        }
        if here.features & 1 << component == 0 || here.range(component).len() != from.len() {
            return Err(Unsupported(name(component)));
        }
        state[here.range(component)].copy_from_slice(&xstate[from]);
        kept |= 1 << component;
    }
    // struct _fpx_sw_bytes: magic1, extended_size, xfeatures, xstate_size.
    let size = here.size() as u32;
    state[SW_RESERVED..][..4].copy_from_slice(&MAGIC[0].to_le_bytes());
    state[SW_RESERVED + 4..][..4].copy_from_slice(&(size + 4).to_le_bytes());
    state[SW_RESERVED + 8..][..8].copy_from_slice(&here.features.to_le_bytes());
    state[SW_RESERVED + 16..][..4].copy_from_slice(&size.to_le_bytes());
    state[XSTATE_BV..][..8].copy_from_slice(&kept.to_le_bytes());
    Ok(state)
}

/// Where the components of an XSAVE area in standard format are.
#[derive(Clone, Debug)]
struct Layout {
    /// XCR0's bits: the components that this layout has.
    features: u64,
    /// Offset and size of each component, by its number; of 0 and 1 unused.
    places: [(u32, u32); 64],
}

impl Layout {
    /// This CPU's, as far as the kernel lets any program use it without asking.
    fn here() -> Self {
        let mut layout = Self {
            features: xcr0() & !TILE_DATA,
            places: [(0, 0); 64],
        };
        for component in layout.components() {
            let leaf = __cpuid_count(0xd, component);
            layout.places[component as usize] = (leaf.ebx, leaf.eax);
        }
        layout
    }

    /// This layout on a CPU that offers only `features`, all of which it must have: offsets do not depend on what
    /// else is enabled.
    fn restricted(&self, features: u64) -> Option<Self> {
        (features & !self.features == 0).then_some(Self {
            features,
            places: self.places,
        })
    }

    /// Intel's fixed offsets: the same on every CPU, whether or not the components between are there.
    fn intel(features: u64) -> Option<Self> {
        let place = |component| match component {
            2 => Some((576, 256)),
            3 => Some((960, 64)),
            4 => Some((1024, 64)),
            5 => Some((1088, 64)),
            6 => Some((1152, 512)),
            7 => Some((1664, 1024)),
            9 => Some((2688, 8)),
            17 => Some((2752, 64)),
            18 => Some((2816, 8192)),
            19 => Some((960, 128)), // APX took the place of MPX
            _ => None,
        };
        Self::from_places(features, place)
    }

    /// AMD's: each component directly behind the one before it.
    fn packed(features: u64) -> Option<Self> {
        let mut next = HEADER_END as u32;
        Self::from_places(features, |component| {
            let size = match component {
                2 => 256,
                5 => 64,
                6 => 512,
                7 => 1024,
                9 => 8,
                _ => return None,
            };
            next += size;
            Some((next - size, size))
        })
    }

    fn from_places(features: u64, mut place: impl FnMut(u32) -> Option<(u32, u32)>) -> Option<Self> {
        let mut layout = Self {
            features,
            places: [(0, 0); 64],
        };
        for component in layout.components() {
            layout.places[component as usize] = place(component)?;
        }
        Some(layout)
    }

    /// The numbers of the components behind the header, ascending.
    fn components(&self) -> impl Iterator<Item = u32> + use<> {
        let features = self.features;
        (2..64).filter(move |component| features & 1 << component != 0)
    }

    fn range(&self, component: u32) -> std::ops::Range<usize> {
        let (offset, size) = self.places[component as usize];
        offset as usize..(offset + size) as usize
    }

    /// The whole area: what the kernel calls the user size, to the end of the last component.
    fn size(&self) -> usize {
        self.components()
            .map(|component| self.range(component).end)
            .fold(HEADER_END, usize::max)
    }
}

/// What the registers of a component are called, for people.
fn name(component: u32) -> String {
    let name = match component {
        2 => "AVX",
        3 | 4 => "MPX",
        5 => "AVX-512 mask",
        6 => "AVX-512 (upper halves of zmm0-15)",
        7 => "AVX-512 (zmm16-31)",
        9 => "protection key (PKRU)",
        17 => "AMX tile configuration",
        18 => "AMX tile",
        19 => "APX general",
        other => return format!("XSAVE component {other}"),
    };
    name.to_owned()
}

fn word(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}

/// The components that the kernel has enabled; the legacy two where there is no XSAVE.
fn xcr0() -> u64 {
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return LEGACY;
    }
    // SAFETY: OSXSAVE says that the kernel has enabled XGETBV for programs; register 0 always exists then.
    unsafe { _xgetbv(0) }
}

/// The bits of MXCSR that may be set on this CPU; any other makes XRSTOR fault.
fn mxcsr_mask() -> u32 {
    #[repr(C, align(16))]
    struct Area([u8; 512]);
    let mut area = Area([0; 512]);
    // SAFETY: FXSAVE is in the x86_64 baseline; it writes 512 bytes to an address aligned to 16, which `Area` is.
    unsafe { _fxsave(area.0.as_mut_ptr()) };
    match u32::from_le_bytes(area.0[MXCSR_MASK..MXCSR_MASK + 4].try_into().expect("four bytes")) {
        0 => 0xffbf, // the manual's default for CPUs that do not say
        mask => mask,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Enters a frame, and catches the thread where the frame sends it (`landing`): stores all that it finds, puts the
    // caller's own registers back and returns to the caller of `vrun_test_sigreturn`.
    std::arch::global_asm!(
        ".pushsection .bss",
        ".balign 64",
        "vrun_test_before: .skip 16384", // the extended state before the call, to be put back
        "vrun_test_after: .skip 16384",  // and at the landing
        "vrun_test_regs: .skip 136",     // rax rbx rcx rdx rsi rdi rbp rsp r8-r15 eflags
        "vrun_test_rsp: .skip 8",
        ".popsection",
        ".global vrun_test_sigreturn, vrun_test_landing, vrun_test_after, vrun_test_regs",
        "vrun_test_sigreturn:",
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rip + vrun_test_rsp], rsp",
        "mov eax, -1",
        "mov edx, -1",
        "xsave64 [rip + vrun_test_before]",
        "mov rsp, rdi",
        "mov eax, 15",
        "syscall",
        "ud2",
        "vrun_test_landing:",
        "mov [rip + vrun_test_regs], rax",
        "mov [rip + vrun_test_regs + 8], rbx",
        "mov [rip + vrun_test_regs + 16], rcx",
        "mov [rip + vrun_test_regs + 24], rdx",
        "mov [rip + vrun_test_regs + 32], rsi",
        "mov [rip + vrun_test_regs + 40], rdi",
        "mov [rip + vrun_test_regs + 48], rbp",
        "mov [rip + vrun_test_regs + 56], rsp",
        "mov [rip + vrun_test_regs + 64], r8",
        "mov [rip + vrun_test_regs + 72], r9",
        "mov [rip + vrun_test_regs + 80], r10",
        "mov [rip + vrun_test_regs + 88], r11",
        "mov [rip + vrun_test_regs + 96], r12",
        "mov [rip + vrun_test_regs + 104], r13",
        "mov [rip + vrun_test_regs + 112], r14",
        "mov [rip + vrun_test_regs + 120], r15",
        "mov rsp, [rip + vrun_test_rsp]",
        "pushfq",
        "pop rax",
        "mov [rip + vrun_test_regs + 128], rax",
        "cld",
        "mov eax, -1",
        "mov edx, -1",
        "xsave64 [rip + vrun_test_after]",
        "mov eax, -1",
        "mov edx, -1",
        "xrstor64 [rip + vrun_test_before]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    );

    unsafe extern "C" {
        fn vrun_test_sigreturn(rsp: u64);
        static vrun_test_landing: u8;
        static vrun_test_after: [u8; 16384];
        static vrun_test_regs: [u64; 17];
    }

    /// An extended state as the kernel would give it for `layout`, every component in use, with recognizable bytes.
    fn sample(layout: &Layout) -> Vec<u8> {
        let mut state = vec![0; layout.size()];
        state[0..2].copy_from_slice(&0x037f_u16.to_le_bytes()); // x87 control word
        state[MXCSR..MXCSR + 4].copy_from_slice(&0x1fa0_u32.to_le_bytes()); // precision exception flagged
        for (index, byte) in state[160..416].iter_mut().enumerate() {
            *byte = index as u8 ^ 0x5a; // xmm0-15
        }
        for component in layout.components() {
            for (index, byte) in state[layout.range(component)].iter_mut().enumerate() {
                *byte = (index as u8).wrapping_mul(7) ^ component as u8;
            }
        }
        if layout.features & 1 << 9 != 0 {
            state[layout.range(9)].copy_from_slice(&0x5555_5550_u64.to_le_bytes()); // key 0 and 1 open
        }
        // MPX and the AMX configuration fault on arbitrary values.
        let used = layout.features & !(1 << 3 | 1 << 4 | 1 << 17);
        state[SW_RESERVED..][..8].copy_from_slice(&layout.features.to_le_bytes());
        state[XSTATE_BV..][..8].copy_from_slice(&used.to_le_bytes());
        state
    }

    #[test]
    fn sigreturn_loads_everything() {
        let here = Layout::here();
        let state = sample(&here);
        let mut memory = vec![0_u64; max_size().div_ceil(8) + 8];
        let blocked = !(1 << 8 | 1 << 18); // all but SIGKILL and SIGSTOP, which cannot be
        let mut stack = vec![0_u8; 64 << 10];
        let altstack = AlternateStack {
            address: stack.as_mut_ptr() as u64,
            flags: 0,
            size: stack.len() as u64,
        };
        // SAFETY: all zero is a valid value of this plain structure.
        let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        for (index, register) in [
            &mut regs.rax,
            &mut regs.rbx,
            &mut regs.rcx,
            &mut regs.rdx,
            &mut regs.rsi,
            &mut regs.rdi,
            &mut regs.rbp,
            &mut regs.rsp,
            &mut regs.r8,
            &mut regs.r9,
            &mut regs.r10,
            &mut regs.r11,
            &mut regs.r12,
            &mut regs.r13,
            &mut regs.r14,
            &mut regs.r15,
        ]
        .into_iter()
        .enumerate()
        {
            *register = 0x1111_2222_3333_0000 + index as u64;
        }
        regs.eflags = 0xe03; // interrupts, direction, overflow, carry
        regs.cs = 0x33;
        regs.ss = 0x2b;
        regs.rip = &raw const vrun_test_landing as u64;

        // At every alignment that the restorer may choose.
        for shift in [0, 1, 5] {
            let target = &mut memory[shift..];
            let frame = build(target.as_ptr() as u64, &regs, &state, blocked, altstack).unwrap();
            assert!(frame.bytes.len() <= max_size());
            // SAFETY: plain system calls on valid local variables; the frame fits `memory`, leads to the landing,
            // which puts this thread's registers back; the mask and stack are put back below.
            let (mask, now) = unsafe {
                target
                    .as_mut_ptr()
                    .cast::<u8>()
                    .copy_from_nonoverlapping(frame.bytes.as_ptr(), frame.bytes.len());
                let (mut old_mask, mut old_stack, mut mask, mut now) = std::mem::zeroed();
                libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), &mut old_mask);
                libc::sigaltstack(std::ptr::null(), &mut old_stack);
                vrun_test_sigreturn(frame.rsp);
                libc::pthread_sigmask(libc::SIG_SETMASK, &old_mask, &mut mask);
                libc::sigaltstack(&old_stack, &mut now);
                (std::mem::transmute::<libc::sigset_t, [u64; 16]>(mask)[0], now)
            };
            assert_eq!(mask, blocked);
            assert_eq!(
                (now.ss_sp as u64, now.ss_flags, now.ss_size as u64),
                (altstack.address, 0, altstack.size)
            );
            // SAFETY: only the assembly above writes these, and it has returned.
            let (after, found) = unsafe { (&vrun_test_after, &vrun_test_regs) };
            for (index, register) in found[..16].iter().enumerate() {
                assert_eq!(*register, 0x1111_2222_3333_0000 + index as u64, "register {index}");
            }
            assert_eq!(found[16], regs.eflags);
            assert_eq!(after[160..416], state[160..416], "xmm0-15");
            assert_eq!(after[MXCSR..MXCSR + 4], state[MXCSR..MXCSR + 4]);
            let used = word(&state, XSTATE_BV);
            for component in here.components().filter(|component| used & 1 << component != 0) {
                assert_eq!(
                    after[here.range(component)],
                    state[here.range(component)],
                    "{}",
                    name(component)
                );
            }
        }
    }

    #[test]
    fn the_kernel_gives_what_is_expected() {
        // SAFETY: the child only makes system calls; the parent waits for it and ends it.
        let state = unsafe {
            let child = libc::fork();
            assert!(child >= 0);
            if child == 0 {
                libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
                libc::raise(libc::SIGSTOP);
                libc::_exit(0);
            }
            assert_eq!(libc::waitpid(child, std::ptr::null_mut(), libc::__WALL), child);
            let mut state = vec![0_u8; LIMIT];
            let mut iovec = libc::iovec {
                iov_base: state.as_mut_ptr().cast(),
                iov_len: state.len(),
            };
            assert_eq!(libc::ptrace(libc::PTRACE_GETREGSET, child, 0x202, &raw mut iovec), 0);
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), libc::__WALL);
            state.truncate(iovec.iov_len);
            state
        };
        assert_eq!(word(&state, SW_RESERVED), xcr0());
        assert_eq!(adapt(&state).unwrap().len(), Layout::here().size());
    }

    #[test]
    fn other_families_are_converted() {
        let features = 0b10_1110_0111; // AVX, AVX-512, PKRU
        let (intel, amd) = (Layout::intel(features).unwrap(), Layout::packed(features).unwrap());
        assert_eq!((intel.size(), amd.size()), (2696, 2440));
        let adapted = adapt_to(&amd, 0xffff, &sample(&intel)).unwrap();
        for component in intel.components() {
            assert_eq!(adapted[amd.range(component)], sample(&intel)[intel.range(component)]);
        }
        // To a CPU with fewer components: only what is in use must exist.
        let small = Layout::packed(0b10_0000_0111).unwrap();
        let error = adapt_to(&small, 0xffff, &sample(&intel)).unwrap_err();
        assert_eq!(error, SigframeError::Unsupported("AVX-512 mask".to_owned()));
        let mut unused = sample(&intel);
        unused[XSTATE_BV] = 0b111;
        assert_eq!(adapt_to(&small, 0xffff, &unused).unwrap().len(), small.size());
        let mut zero = sample(&intel);
        zero[intel.range(5)].fill(0);
        zero[intel.range(6)].fill(0);
        zero[intel.range(7)].fill(0);
        assert_eq!(
            word(&adapt_to(&small, 0xffff, &zero).unwrap(), XSTATE_BV),
            0b10_0000_0111
        );
    }

    #[test]
    fn hostile_states_are_refused() {
        let good = sample(&Layout::here());
        assert!(adapt(&good).is_ok());
        assert!(matches!(
            adapt(&good[..HEADER_END - 1]),
            Err(SigframeError::Malformed(_))
        ));
        assert!(matches!(adapt(&vec![0; LIMIT + 1]), Err(SigframeError::Malformed(_))));
        assert!(matches!(
            adapt(&good[..good.len() - 1]),
            Err(SigframeError::UnknownLayout { .. })
        ));
        for (offset, value) in [
            (SW_RESERVED, 0),
            (XSTATE_BV + 7, 0x80),
            (XCOMP_BV + 7, 0x80),
            (MXCSR + 3, 0xff),
        ] {
            let mut bad = good.clone();
            bad[offset] = value;
            assert!(matches!(adapt(&bad), Err(SigframeError::Malformed(_))), "{offset}");
        }
        let mut unknown = good;
        unknown[SW_RESERVED + 7] = 0x7f;
        assert!(matches!(adapt(&unknown), Err(SigframeError::UnknownLayout { .. })));
        // SAFETY: all zero is a valid value of this plain structure.
        let regs = unsafe { std::mem::zeroed() };
        let state = sample(&Layout::here());
        for address in [4, 1 << 47, u64::MAX - 7] {
            assert!(build(address, &regs, &state, 0, AlternateStack::default()).is_err());
        }
    }
}
