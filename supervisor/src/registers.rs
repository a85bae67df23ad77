//! General registers: as an image has them, and as ptrace and signal frames do. The fields are the same.

use vrun_image::state::Registers;

/// Defines both directions from one list of fields.
macro_rules! registers {
    ($($name:ident)*) => {
        /// From ptrace to the image.
        pub fn to_image(registers: &libc::user_regs_struct) -> Registers {
            Registers { $($name: registers.$name,)* }
        }

        /// From the image to ptrace.
        pub fn to_user(registers: &Registers) -> libc::user_regs_struct {
            libc::user_regs_struct { $($name: registers.$name,)* }
        }
    };
}

registers! {
    r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base ds es fs gs
}
