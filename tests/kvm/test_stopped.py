"""On a real kernel: vCPUs that run, and the descriptors that guestclock is lent."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from guestclock import Freeze, KvmVm, Reg
from guestclock.errors import CountersMoved, Interrupted, KvmError, ReadBackMismatch, RestoreOpen, VcpuRunning
from kvm.spinning import spinning, wait_for_a_beat
from kvm_vmm import KVM_ARM_VCPU_POWER_OFF, Machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Two vCPUs and a vGIC."""
    made = Machine(2)
    yield made
    made.close()


@pytest.fixture
def bare() -> Iterator[Machine]:
    """Two vCPUs without a vGIC."""
    made = Machine(2, gic=False)
    yield made
    made.close()


def opened(machine: Machine, **options: Any) -> KvmVm:
    return KvmVm(machine.vm_fd, machine.vcpu_fds, gic_fd=machine.gic_fd, **options)


def owning(machine: Machine) -> KvmVm:
    vm = opened(machine)
    if not vm.capabilities.counter_offset:
        pytest.skip("this kernel has no VM-wide offset")
    vm.set_counter_offset(0)
    return vm


def refuses(vm: KvmVm) -> None:
    """KVM says that a vCPU runs; which one it doesn't say."""
    with pytest.raises(VcpuRunning, match="Stop every vCPU") as caught:
        vm.checkpoint()
    assert (caught.value.errno, caught.value.vcpu) == (errno.EBUSY, None)
    with pytest.raises(VcpuRunning), vm.pause(Freeze()):
        pass


def test_the_vgic_finds_a_vcpu_that_runs_unannounced(machine: Machine) -> None:
    vm = opened(machine)
    assert vm.capabilities.quiescence_check.ok is True
    before = vm.checkpoint()
    planned = vm.restoring(before)
    with spinning(machine, 1):
        refuses(vm)
        with pytest.raises(VcpuRunning):
            planned.__enter__()
    assert vm.checkpoint().vcpus == 2
    assert not vm.opted_in, "nothing was written"


def test_the_vms_descriptor_finds_it_too(machine: Machine) -> None:
    vm = KvmVm(machine.vm_fd, machine.vcpu_fds)
    if not vm.capabilities.counter_offset:
        pytest.skip("this kernel has no VM-wide offset")
    assert vm.capabilities.quiescence_check.ok is True
    before = vm.checkpoint()
    with spinning(machine, 1):
        refuses(vm)
        with pytest.raises(VcpuRunning):
            vm.plan(before)
        with pytest.raises(VcpuRunning):
            vm.set_counter_offset(5)
    assert not vm.opted_in
    assert takes_values(machine)


def test_without_a_vgic_the_caller_vouches(bare: Machine) -> None:
    vm = opened(bare)
    support = vm.capabilities.quiescence_check
    assert support.ok is None
    assert "vouches" in support.reason
    if vm.capabilities.counter_offset:
        vm.set_counter_offset(0)
        assert vm.capabilities.quiescence_check.ok is None, "an offset isn't written to look"


def answers(machine: Machine) -> list[int]:
    """All that this kernel says of the timers, but for the counts, which move by themselves."""
    counts = {Reg.TIMER_CNT, Reg.PTIMER_CNT}
    known = [reg for reg in Reg if reg not in counts]
    listed = [(vcpu, reg) for vcpu in range(2) for reg in machine.reg_list(vcpu) if reg in known]
    return [machine.get_one_reg(vcpu, reg) for vcpu, reg in listed]


def takes_values(machine: Machine) -> bool:
    """Whether the VM never opted in: one that has ignores values."""
    machine.set_one_reg(0, Reg.TIMER_CNT, 2**50)
    return machine.get_one_reg(0, Reg.TIMER_CNT) >= 2**50


def test_a_checkpoint_and_a_plan_change_nothing(machine: Machine) -> None:
    machine.set_one_reg(0, Reg.TIMER_CVAL, 2**63)
    machine.set_one_reg(0, Reg.TIMER_CTL, 1)
    machine.set_one_reg(0, Reg.TIMER_CNT, 10**9)
    vm = KvmVm(machine.vm_fd, machine.vcpu_fds)
    before, host = answers(machine), vm.counter.read()
    count = machine.get_one_reg(0, Reg.TIMER_CNT)
    vm.plan(vm.checkpoint())
    assert answers(machine) == before
    assert machine.get_one_reg(0, Reg.TIMER_CNT) - count <= vm.counter.read() - host
    assert takes_values(machine)


def test_an_offset_is_believed_only_where_it_fits(machine: Machine) -> None:
    vm = owning(machine)
    before = vm.checkpoint()
    far = vm.frequency_hz * 10
    stale = KvmVm(machine.vm_fd, machine.vcpu_fds, counter_offset=far)
    with pytest.raises(CountersMoved):
        stale.checkpoint()
    with pytest.raises(CountersMoved):
        stale.plan(before)
    host = vm.counter.read()
    assert host <= machine.get_one_reg(1, Reg.TIMER_CNT) <= vm.counter.read(), "the offset is still 0"
    plain = Machine(2)
    try:
        wrong = KvmVm(plain.vm_fd, plain.vcpu_fds, counter_offset=77)
        with pytest.raises(CountersMoved):
            wrong.checkpoint()
        assert takes_values(plain)
    finally:
        plain.close()


def test_a_value_that_kvm_ignores_is_no_success(machine: Machine) -> None:
    source = Machine(2)
    try:
        checkpoint = opened(source).checkpoint()
    finally:
        source.close()
    owning(machine)
    host = machine.get_one_reg(0, Reg.PTIMER_CNT)
    unknowing = KvmVm(machine.vm_fd, machine.vcpu_fds)
    with pytest.raises(ReadBackMismatch, match="counter_offset"):
        unknowing.restore(checkpoint)
    assert host <= machine.get_one_reg(0, Reg.TIMER_CNT), "the offset is still 0"
    with pytest.raises(RestoreOpen), unknowing.running(0):
        pass


def test_another_vms_vcpu_is_found(machine: Machine) -> None:
    vm = owning(machine)
    checkpoint = vm.checkpoint()
    other = Machine(2)
    try:
        mixed = KvmVm(machine.vm_fd, [machine.vcpu_fds[0], other.vcpu_fds[1]], counter_offset=0)
        with pytest.raises(ReadBackMismatch, match="another VM") as caught:
            mixed.restore(checkpoint)
        assert "the VM is as it was" in str(caught.value)
        host = vm.counter.read()
        assert host <= machine.get_one_reg(0, Reg.TIMER_CNT) <= vm.counter.read(), "its own offset was put back"
        assert other.get_one_reg(1, Reg.TIMER_CVAL) == 0
    finally:
        other.close()


def test_the_gate_answers_at_once_while_a_vcpu_runs(machine: Machine) -> None:
    """Without a system call: KVM would answer the first read of a register when the vCPU comes out, and not before."""
    vm = opened(machine)
    with vm.running(0), spinning(machine) as guest:
        for refused in (
            vm.checkpoint,
            lambda: vm.get_one_reg(0, Reg.TIMER_CVAL),
            lambda: vm.cntvct(0),
        ):
            with pytest.raises(VcpuRunning) as caught:
                refused()
            assert caught.value.vcpu == 0
        assert vm.get_one_reg(1, Reg.TIMER_CVAL) == 0, "the other one is stopped"
        wait_for_a_beat(guest, 0)


def test_an_owned_vms_counters_can_be_read_while_it_runs(machine: Machine) -> None:
    vm = owning(machine)
    with vm.running(0), spinning(machine) as guest:
        for view, read in enumerate((vm.cntvct, vm.cntpct), start=1):
            before = guest.beat(0)[view]
            here = read(0)
            wait_for_a_beat(guest, 0)
            wait_for_a_beat(guest, 0)
            assert before <= here <= guest.beat(0)[view]


def test_a_thread_that_reads_registers_is_waited_out(machine: Machine) -> None:
    """It makes KVM answer EBUSY now and then, though no vCPU runs."""
    vm = owning(machine)
    done = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        other = opened(machine)
        try:
            while not done.is_set():
                other.get_one_reg(0, Reg.TIMER_CVAL)
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for n in range(300):
            vm.set_counter_offset(n)
    finally:
        done.set()
        thread.join()
    assert not failures


def test_the_interpreters_lock_is_given_up_in_an_ioctl(machine: Machine) -> None:
    """A read of a running vCPU's register waits in the kernel. Were the lock held, nobody could end the run."""
    vm = opened(machine)
    values: list[int] = []
    with spinning(machine) as guest:
        thread = threading.Thread(target=lambda: values.append(vm.get_one_reg(0, Reg.TIMER_CVAL)))
        thread.start()
        for _ in range(20):
            wait_for_a_beat(guest, 0)
        assert values == []
    thread.join()
    assert values == [0]


class Lent:
    """A descriptor behind an object, as a VMM in Python has it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.asked = 0

    def fileno(self) -> int:
        """The number, counted."""
        self.asked += 1
        return self.fd


def test_objects_are_asked_anew_and_nothing_is_closed(machine: Machine) -> None:
    vm_fd, *vcpus = (Lent(fd) for fd in (machine.vm_fd, *machine.vcpu_fds))
    vm = KvmVm(vm_fd, vcpus)
    vm.set_one_reg(0, Reg.TIMER_CVAL, 5)
    asked = vcpus[0].asked
    moved = os.dup(vcpus[0].fd)
    vcpus[0].fd = moved
    assert vm.get_one_reg(0, Reg.TIMER_CVAL) == 5
    assert vcpus[0].asked > asked
    os.close(moved)
    with pytest.raises(KvmError, match="The descriptor is closed") as caught:
        vm.get_one_reg(0, Reg.TIMER_CVAL)
    assert caught.value.errno == errno.EBADF
    del vm
    for fd in (machine.vm_fd, *machine.vcpu_fds):
        os.fstat(fd)


def test_an_object_that_fails_is_heard() -> None:
    class Closed:
        def fileno(self) -> int:
            raise ValueError("I/O operation on closed file")

    with pytest.raises(ValueError, match="closed file"):
        KvmVm(Closed(), [])


def test_descriptors_of_something_else(machine: Machine) -> None:
    vm_fd, (vcpu_fd, _) = machine.vm_fd, machine.vcpu_fds
    wrongs: tuple[Callable[[], object], ...] = (
        lambda: KvmVm(vcpu_fd, [vcpu_fd]),
        lambda: KvmVm(vm_fd, [vm_fd]),
        lambda: KvmVm(vm_fd, [vcpu_fd], gic_fd=vm_fd),
        lambda: KvmVm(machine.kvm_fd, [vcpu_fd]),
    )
    for wrong in wrongs:
        with pytest.raises(ValueError, match="descriptor, but of"):
            wrong()
    with pytest.raises(KvmError) as caught:
        KvmVm(10_000, [vcpu_fd])
    assert caught.value.errno == errno.EBADF


def told_in_a_child(vm: KvmVm) -> str:
    """What a child made by a fork is told when it asks for a register."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(60)
        try:
            vm.get_one_reg(0, Reg.TIMER_CVAL)
            said = "nothing"
        except KvmError as error:
            said = f"{error.errno}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        return answer.read()


def test_another_process_is_told_why(machine: Machine) -> None:
    said = told_in_a_child(opened(machine))
    assert said.startswith(f"{errno.EIO}: ")
    assert "VMM's own process" in said


def test_a_child_is_told_while_another_thread_is_in_a_call(bare: Machine) -> None:
    """KVM answers the thread when the vCPU comes out; until then it holds a lock, of which the child has a copy."""
    vm = opened(bare)
    with spinning(bare):
        thread = threading.Thread(target=lambda: vm.get_one_reg(0, Reg.TIMER_CVAL))
        thread.start()
        # It is there, as far as anybody can see.
        thread.join(0.5)
        assert thread.is_alive()
        said = told_in_a_child(vm)
    thread.join()
    assert said.startswith(f"{errno.EIO}: ")


def test_a_vcpu_that_is_not_initialised(bare: Machine) -> None:
    vm = owning(bare)
    vcpu = bare.create_vcpu()
    assert vm.add_vcpu(bare.vcpu_fds[vcpu]) == 2
    with pytest.raises(KvmError, match="KVM_ARM_VCPU_INIT comes first") as caught:
        vm.get_one_reg(2, Reg.TIMER_CVAL)
    assert caught.value.errno == errno.ENOEXEC
    bare.init_vcpu(vcpu)
    checkpoint = vm.checkpoint()

    late = Machine(2, gic=False)
    try:
        vm = opened(late)
        vm.add_vcpu(late.vcpu_fds[late.create_vcpu()])
        planned = vm.restoring(checkpoint)
        with pytest.raises(KvmError, match="KVM_ARM_VCPU_INIT comes first") as caught:
            planned.__enter__()
        assert any("the VM is as it was" in note for note in caught.value.__notes__)
        assert not vm.opted_in
    finally:
        late.close()


def test_a_vcpu_created_after_a_restore_by_value_is_caught(bare: Machine) -> None:
    source = opened(bare).checkpoint()
    target = Machine(2, gic=False)
    try:
        vm = opened(target)
        report = vm.restore(source)
        assert report.method in ("by-value", "virtual-only")
        target.init_vcpu(target.create_vcpu())
        with pytest.raises(CountersMoved) as caught, vm.running(0):
            pass
        assert caught.value.view == "virtual"
    finally:
        target.close()


def test_a_vcpu_created_after_a_restore_by_offset_is_harmless(bare: Machine) -> None:
    checkpoint = owning(bare).checkpoint()
    target = Machine(2, gic=False)
    try:
        vm = opened(target)
        report = vm.restore(checkpoint)
        vcpu = target.create_vcpu()
        target.init_vcpu(vcpu)
        vm.add_vcpu(target.vcpu_fds[vcpu])
        before = vm.counter.read()
        guest = vm.get_one_reg(vcpu, Reg.TIMER_CNT)
        after = vm.counter.read()
        assert before - report.released_at <= guest - report.cntvct <= after - report.released_at
    finally:
        target.close()


def test_the_offset_that_a_vmm_has_written_already(bare: Machine) -> None:
    owning(bare)
    offset = 12_345_678
    bare.set_counter_offset(offset)
    assert not opened(bare).opted_in, "KVM can't be asked"
    vm = opened(bare, counter_offset=offset)
    assert vm.opted_in
    now = vm.counter.read()
    assert vm.cntvct(0, now=now) == now - offset
    before = vm.counter.read()
    guest = vm.get_one_reg(0, Reg.TIMER_CNT)
    assert before - offset <= guest <= vm.counter.read() - offset


def test_time_is_injected_into_the_model_alone(bare: Machine) -> None:
    vm = opened(bare)
    with pytest.raises(ValueError, match="knows only now"):
        vm.cntvct(0, now=5)
    checkpoint = vm.checkpoint()
    with pytest.raises(ValueError, match="now= is for the model"):
        vm.plan(checkpoint, now=5)
    with vm.restoring(checkpoint) as restoring, pytest.raises(ValueError, match="now= is for the model"):
        restoring.apply(now=5)
    with vm.running(0):
        pass


def test_behaviours_and_what_a_physical_offset_costs(bare: Machine) -> None:
    vm = opened(bare)
    behaviours = vm.behaviours
    assert behaviours["counter_offset"] == behaviours["physical_timer"] == bool(bare.check_extension(227))
    # Both changed together, in Linux 6.18.
    assert (behaviours["list_order"], behaviours["ctl_readback"]) in (
        ("grouped", "computed"),
        ("by-encoding", "stored"),
    )
    untrapped = vm.capabilities.physical_offset_untrapped
    assert untrapped.ok is not True
    assert "CNTPOFF_EL2" in untrapped.reason
    if behaviours["counter_offset"] and untrapped.ok is False:
        vm.set_counter_offset(vm.counter.read())
        vm.set_one_reg(1, Reg.PTIMER_CVAL, 2**64 - 1)
        vm.set_one_reg(1, Reg.PTIMER_CTL, 3)
        other = Machine(2, gic=False)
        try:
            intended = opened(other).plan(vm.checkpoint())
        finally:
            other.close()
        assert any("CNTPCT_EL0 and its physical timer trap" in fact.text for fact in intended.degraded)
        misfires = [warning for warning in intended.warnings if "vCPU 1's physical timer" in warning.text]
        assert any("fires at once" in warning.text for warning in misfires)


def test_a_vcpu_off_by_psci_is_restored_too(bare: Machine) -> None:
    """Power state is the VMM's: its timers are there all the same."""
    checkpoint = opened(bare).checkpoint()
    target = Machine(2, gic=False, features=KVM_ARM_VCPU_POWER_OFF)
    try:
        vm = opened(target)
        vm.restore(checkpoint)
        assert vm.checkpoint().vcpus == 2
    finally:
        target.close()


def test_giving_a_restore_up_gives_the_offset_back(machine: Machine) -> None:
    vm = owning(machine)
    behind = vm.frequency_hz * 10
    vm.set_counter_offset(behind)
    checkpoint = vm.checkpoint()
    vm.set_counter_offset(0)
    with pytest.raises(ZeroDivisionError), vm.restoring(checkpoint):
        count = machine.get_one_reg(1, Reg.TIMER_CNT)
        assert count <= vm.counter.read() - behind, "a freeze's provisional offset is at least what it was"
        raise ZeroDivisionError
    before = vm.counter.read()
    assert before <= machine.get_one_reg(1, Reg.TIMER_CNT) <= vm.counter.read(), "the offset is 0 again"
    with vm.running(0):
        pass


def test_half_a_restore_keeps_the_gate_shut(machine: Machine) -> None:
    vm = owning(machine)
    vm.set_one_reg(1, Reg.TIMER_CVAL, 99)
    vm.set_one_reg(1, Reg.TIMER_CTL, 3)
    checkpoint = vm.checkpoint()
    target = Machine(2)
    try:
        vm = opened(target)
        with vm.restoring(checkpoint) as begun:
            begun.apply()
            target.init_vcpu(1)
            with pytest.raises(ReadBackMismatch):
                begun.release()
            with pytest.raises(RestoreOpen), vm.running(0):
                pass
            begun.apply()
            with spinning(target, 0), pytest.raises(Interrupted) as caught:
                begun.release()
            assert isinstance(caught.value.__cause__, VcpuRunning)
            assert (caught.value.state, caught.value.retry) == ("timers-only", "release")
            # Its timers were on, and masked: nothing of them has changed.
            begun.release()
        with vm.running(0):
            pass
    finally:
        target.close()


def test_a_look_at_the_clocks_waits_for_nobody_and_finds_what_was_set_elsewhere(machine: Machine) -> None:
    vm = owning(machine)
    assert vm.verify()
    with spinning(machine, 1), pytest.raises(VcpuRunning):
        vm.verify()
    machine.set_counter_offset(12_345)
    found = vm.verify()
    assert [(one.code, one.vcpu, one.clock) for one in found.mismatches] == [
        ("vm-offset", vcpu, clock) for clock in ("CNTVCT_EL0", "CNTPCT_EL0") for vcpu in (0, 1)
    ]
    assert {one.ahead_ticks for one in found.mismatches if one.ahead_ticks is not None and one.ahead_ticks < 0}
    assert "it was set elsewhere" in str(found)
    vm.set_counter_offset(12_345)
    assert vm.verify()
