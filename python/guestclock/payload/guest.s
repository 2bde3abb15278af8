// A guest that logs its clocks: docs/payload.md says how a VMM loads it, commands it and reads its log.
//
// Position independent, at any multiple of 4 KiB. Every vCPU enters at the start, at EL1 or EL2 with the MMU off. Each has
// an area of its own behind the image, and no stack: an interrupt is taken only in one place, where little is live.
//
// The layout below is also in layout.py. `make payload` assembles this file into guest.bin.

.equ PARAMETERS,    0x40            // in the image
.equ P_VCPUS,       PARAMETERS + 0x08
.equ P_SAMPLES,     PARAMETERS + 0x0c
.equ P_DOORBELL,    PARAMETERS + 0x10
.equ P_GICD,        PARAMETERS + 0x18
.equ P_GICR,        PARAMETERS + 0x20
.equ P_PERIOD,      PARAMETERS + 0x28
.equ P_PSCI,        PARAMETERS + 0x30
.equ P_INTID,       PARAMETERS + 0x34
.equ P_COMMANDS,    PARAMETERS + 0x40
.equ LOG,           0x1000
.equ L_LAST,        LOG + 0x40
.equ AREAS,         0x2000
.equ AREA_SIZE,     0x12000
.equ MAX_VCPUS,     8

.equ A_MAGIC,       0x00            // in an area
.equ A_STATE,       0x08
.equ A_COUNT,       0x10
.equ A_CNTFRQ,      0x18
.equ A_MPIDR,       0x20
.equ A_BEAT,        0x28
.equ A_PAIRS,       0x30
.equ A_FAULT,       0x50
.equ A_FAULT_AT,    0x60
.equ A_TABLE,       0x1000
.equ A_RECORDS,     0x2000
.equ RECORDS,       2048

.equ IDLE,          1               // commands, and states
.equ SPIN,          2
.equ SAMPLE,        3
.equ ALARM,         4
.equ FAULT,         5

.equ SAMPLED,       1               // records
.equ ARMED,         2
.equ FIRED,         3
.equ OTHER_IRQ,     4

.equ SAMPLE_BEGINS, 1               // doorbells
.equ SAMPLE_ENDS,   2
.equ ALARM_SET,     3
.equ PARKED,        4
.equ FAULTED,       5

// x19: the image. x20: my area. x21: records so far. x22: doorbell. x23: ticks to an alarm. x24: my command. x25: samples in
// a round. x26: my number. x27: an alarm is set. x28: my records.

// The header of an arm64 boot image (Linux: Documentation/arch/arm64/booting.rst).
image:
    b     entry
    .long 0
    .quad 0                         // text_offset
    .quad AREAS + MAX_VCPUS * AREA_SIZE
    .quad 0xa                       // little endian, 4 KiB pages, anywhere in memory
    .quad 0, 0, 0
    .ascii "ARMd"
    .long 0

    .ascii "gcparam1"               // the parameters, at 0x40
    .long 2                         // vCPUs
    .long 8                         // samples in a round
    .quad 0                         // doorbell: none
    .quad 0x08000000                // GICD, where QEMU's machine "virt" has it
    .quad 0x080a0000                // GICR of vCPU 0; the others' follow
    .quad 0                         // ticks to an alarm: 20 ms
    .long 1                         // PSCI by HVC
    .long 27                        // the virtual timer's interrupt
    .quad 0
    .quad ALARM, ALARM, ALARM, ALARM, ALARM, ALARM, ALARM, ALARM

entry:
    adr   x19, image
    mrs   x26, mpidr_el1
    and   x26, x26, #0xff           // Aff0 numbers the vCPUs
    cmp   x26, #MAX_VCPUS
    b.hs  halt
    mrs   x0, currentel
    cmp   x0, #8
    b.ne  at_el1

// From EL2, as a boot loader may enter: to EL1, with its counters and its interrupt controller's registers untrapped.
    mov   x0, #0x80000000           // RW: EL1 is AArch64
    msr   hcr_el2, x0
    isb
    mov   x0, #0xc03                // EL1PCTEN and EL1PCEN, in the places for both values of E2H
    msr   cnthctl_el2, x0
    mrs   x0, mpidr_el1
    msr   vmpidr_el2, x0
    mrs   x0, midr_el1
    msr   vpidr_el2, x0
    mrs   x0, id_aa64pfr0_el1
    tst   x0, #0x0f000000           // GIC
    b.eq  no_sre
    mov   x0, #0xf
    msr   s3_4_c12_c9_5, x0         // ICC_SRE_EL2
    isb
no_sre:
    movz  x0, #0x30d0, lsl #16      // SCTLR_EL1's RES1, no more: the MMU is off
    movk  x0, #0x0800
    mrs   x1, hcr_el2
    tbnz  x1, #34, with_e2h
    msr   sctlr_el1, x0
    b     leave_el2
with_e2h:
    msr   s3_5_c1_c0_0, x0          // SCTLR_EL12
leave_el2:
    mov   x0, #0x3c5                // EL1h, all masked
    msr   spsr_el2, x0
    adr   x0, at_el1
    msr   elr_el2, x0
    eret

at_el1:
    movz  x0, #(AREA_SIZE & 0xffff)
    movk  x0, #(AREA_SIZE >> 16), lsl #16
    mul   x0, x0, x26
    add   x20, x19, #AREAS
    add   x20, x20, x0

// An identity map of 1 GiB blocks, so that the log is cached as the VMM's own view of this memory is: the image's block is
// Normal memory, all others are Device. Its walks aren't cached, as its writes aren't.
    add   x0, x20, #A_TABLE
    msr   ttbr0_el1, x0
    movz  x1, #0x0401               // AF, attribute 0, a block
    movk  x1, #0x0060, lsl #48      // never executable
    mov   x2, #512
    mov   x3, #0x40000000
map:
    str   x1, [x0], #8
    add   x1, x1, x3
    subs  x2, x2, #1
    b.ne  map
    lsr   x1, x19, #30
    lsl   x2, x1, #30
    mov   x3, #0x705                // AF, inner shareable, attribute 1, a block
    orr   x2, x2, x3
    add   x0, x20, #A_TABLE
    str   x2, [x0, x1, lsl #3]
    mov   x0, #0xff00               // attribute 0: Device-nGnRnE; 1: Normal, write-back
    msr   mair_el1, x0
    movz  x0, #25                   // T0SZ: 39 bits
    movk  x0, #0x0080, lsl #16      // EPD1: no TTBR1
    movk  x0, #2, lsl #32           // IPS: 40 bits
    msr   tcr_el1, x0
    adr   x0, vectors
    msr   vbar_el1, x0
    dsb   sy
    tlbi  vmalle1
    ic    iallu
    dsb   sy
    isb
    movz  x0, #0x30d0, lsl #16
    movk  x0, #0x1805               // I, C, M
    msr   sctlr_el1, x0
    isb

// My area, from the parameters.
    ldr   w0, [x19, #P_VCPUS]
    cmp   x26, x0
    b.hs  halt
    str   xzr, [x20, #A_COUNT]
    str   xzr, [x20, #A_BEAT]
    str   xzr, [x20, #A_FAULT]
    mrs   x0, cntfrq_el0
    str   x0, [x20, #A_CNTFRQ]
    mrs   x1, mpidr_el1
    str   x1, [x20, #A_MPIDR]
    ldr   x23, [x19, #P_PERIOD]
    cbnz  x23, has_period
    mov   x1, #50
    udiv  x23, x0, x1
has_period:
    ldr   x22, [x19, #P_DOORBELL]
    ldr   w25, [x19, #P_SAMPLES]
    add   x24, x19, #P_COMMANDS
    add   x24, x24, x26, lsl #3
    add   x28, x20, #A_RECORDS
    mov   x21, #0
    mov   x27, #0
    adr   x0, area_magic
    ldr   x0, [x0]
    dmb   ishst
    str   x0, [x20, #A_MAGIC]

    ldr   x0, [x19, #P_GICD]
    cbz   x0, no_gic
    bl    set_up_gic
no_gic:
    cbnz  x26, next
    bl    start_others

next:
    ldr   x0, [x24]
    cmp   x0, #SPIN
    b.eq  spin
    cmp   x0, #SAMPLE
    b.eq  sample
    cmp   x0, #ALARM
    b.eq  alarm

    mov   x0, #IDLE
    str   x0, [x20, #A_STATE]
    mov   x0, #PARKED
    bl    ring                      // where it stays until the VMM enters it again
    yield
    b     next

// Says that it runs, with a pair of counts that is always fresh: in two places by turns, so that one of them is whole
// whenever somebody looks. Its timers aren't touched.
spin:
    mov   x0, #SPIN
    add   x5, x20, #A_PAIRS
    ldr   x4, [x20, #A_BEAT]
beat:
    add   x4, x4, #1
    and   x3, x4, #1
    add   x3, x5, x3, lsl #4
    isb
    mrs   x1, cntvct_el0
    isb
    mrs   x2, cntpct_el0
    stp   x1, x2, [x3]
    dmb   ishst
    str   x4, [x20, #A_BEAT]
    dmb   ishst
    str   x0, [x20, #A_STATE]
    ldr   x1, [x24]
    cmp   x1, #SPIN
    b.eq  beat
    b     next

sample:
    str   x0, [x20, #A_STATE]
    bl    take_round
    b     next

alarm:
    str   x0, [x20, #A_STATE]
    bl    take_round
    ldr   x0, [x19, #P_GICD]
    cbz   x0, next                  // nothing to deliver an interrupt
    isb
    mrs   x1, cntvct_el0
    isb
    mrs   x2, cntpct_el0
    add   x3, x1, x23
    msr   cntv_cval_el0, x3
    mov   x27, #1
    msr   cntv_ctl_el0, x27         // ENABLE
    isb
    mov   x0, #ARMED
    bl    append
    mov   x0, #ALARM_SET
    bl    ring
asleep:
    wfi                             // wakes for a masked interrupt too
    msr   daifclr, #2               // and takes it here, and nowhere else
    isb
    msr   daifset, #2
    cbnz  x27, asleep
    b     next

// x25 samples, each between two doorbells. x29: samples to go. x18: where to return. x17: the last count that was read.
take_round:
    mov   x18, x30
    mov   x29, x25
    add   x17, x19, #LOG
    add   x17, x17, #(L_LAST - LOG)
one_sample:
    mov   x0, #SAMPLE_BEGINS
    bl    ring
    ldar  x3, [x17]                 // what a vCPU read last: I may read no less
    isb
    mrs   x1, cntvct_el0
    isb                             // else the second could be read first
    mrs   x2, cntpct_el0
    isb
    stlr  x1, [x17]
    mov   x0, #SAMPLE_ENDS
    bl    ring
    mov   x0, #SAMPLED
    bl    append
    subs  x29, x29, #1
    b.ne  one_sample
    ret   x18

// x0: kind, interrupt and CTL; x1, x2: CNTVCT and CNTPCT; x3: CVAL, or for a sample the last count read before it.
append:
    and   x9, x21, #(RECORDS - 1)
    add   x9, x28, x9, lsl #5
    orr   x0, x0, x21, lsl #32
    stp   x0, x1, [x9]
    stp   x2, x3, [x9, #16]
    add   x21, x21, #1
    dmb   ishst
    str   x21, [x20, #A_COUNT]
    ret

// x0: which doorbell.
ring:
    cbz   x22, rung
    orr   w9, w0, w26, lsl #8
    dmb   ish
    str   w9, [x22]
rung:
    ret

irq:
    mrs   x10, s3_0_c12_c12_0       // ICC_IAR1_EL1
    isb
    mrs   x1, cntvct_el0
    isb
    mrs   x2, cntpct_el0
    mrs   x3, cntv_cval_el0
    mrs   x11, cntv_ctl_el0
    and   x10, x10, #0xffff
    mov   x0, #OTHER_IRQ
    ldr   w9, [x19, #P_INTID]
    cmp   x10, x9
    b.ne  log_irq
    msr   cntv_ctl_el0, xzr         // the line goes low
    isb
    mov   x27, #0
    mov   x0, #FIRED
log_irq:
    orr   x0, x0, x10, lsl #8
    and   x11, x11, #7
    orr   x0, x0, x11, lsl #24
    bl    append
    cmp   x10, #1020                // from there on: special, nothing to end
    b.hs  irq_done
    msr   s3_0_c12_c12_1, x10       // ICC_EOIR1_EL1
    isb
irq_done:
    eret

// x0: the vector.
fault:
    mrs   x1, esr_el1
    stp   x0, x1, [x20, #A_FAULT]
    mrs   x0, elr_el1
    mrs   x1, far_el1
    stp   x0, x1, [x20, #A_FAULT_AT]
    mov   x0, #FAULT
    str   x0, [x20, #A_STATE]
    mov   x0, #FAULTED
    bl    ring
halt:
    wfe
    b     halt

// Group 1, one interrupt, by the architecture's offsets (Arm IHI 0069).
set_up_gic:
    cbnz  x26, redistributor
    mov   w1, #0x12                 // GICD_CTLR: ARE, EnableGrp1
    str   w1, [x0]
redistributor:
    ldr   x0, [x19, #P_GICR]
    add   x0, x0, x26, lsl #17
    ldr   w1, [x0, #0x14]           // GICR_WAKER
    and   w1, w1, #0xfffffffd       // ProcessorSleep
    str   w1, [x0, #0x14]
awaking:
    ldr   w1, [x0, #0x14]
    tbnz  w1, #2, awaking           // ChildrenAsleep
    add   x0, x0, #0x10, lsl #12    // the frame of SGIs and PPIs
    mov   w1, #-1
    str   w1, [x0, #0x80]           // GICR_IGROUPR0
    ldr   w2, [x19, #P_INTID]
    add   x3, x0, x2
    mov   w1, #0x80
    strb  w1, [x3, #0x400]          // GICR_IPRIORITYR
    mov   w1, #1
    lsl   w1, w1, w2
    str   w1, [x0, #0x100]          // GICR_ISENABLER0
    dsb   sy
    mov   x0, #7
    msr   s3_0_c12_c12_5, x0        // ICC_SRE_EL1
    isb
    mov   x0, #0xf0
    msr   s3_0_c4_c6_0, x0          // ICC_PMR_EL1
    msr   s3_0_c12_c12_4, xzr       // ICC_CTLR_EL1: one write ends an interrupt
    mov   x0, #1
    msr   s3_0_c12_c12_7, x0        // ICC_IGRPEN1_EL1
    isb
    ret

// PSCI CPU_ON (Arm DEN 0022) for every other vCPU. One that the VMM has started itself answers ALREADY_ON: as good.
start_others:
    ldr   w27, [x19, #P_PSCI]
    cbz   w27, all_on
    mov   x28, #1
    ldr   w29, [x19, #P_VCPUS]
on:
    cmp   x28, x29
    b.hs  all_on
    movz  x0, #0xc400, lsl #16
    movk  x0, #0x0003
    mov   x1, x28                   // its MPIDR_EL1's affinity
    mov   x2, x19
    mov   x3, #0
    tbnz  w27, #1, by_smc
    hvc   #0
    b     went_on
by_smc:
    smc   #0
went_on:
    add   x28, x28, #1
    b     on
all_on:
    add   x28, x20, #A_RECORDS
    mov   x27, #0
    ret

area_magic:
    .ascii "gcvcpu01"

    .balign 0x800
vectors:
.irp n, 1, 2, 3, 4, 5
    .balign 0x80
    mov   x0, #\n
    b     fault
.endr
    .balign 0x80
    b     irq                       // from EL1, on its own stack pointer
.irp n, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
    .balign 0x80
    mov   x0, #\n
    b     fault
.endr

    .balign 0x1000
    .ascii "gcguest1"               // the log's header, at LOG
    .long MAX_VCPUS
    .long AREA_SIZE
    .long RECORDS
    .long 32                        // bytes in a record
    .balign 0x40
    .quad 0                         // the last CNTVCT that any vCPU read
