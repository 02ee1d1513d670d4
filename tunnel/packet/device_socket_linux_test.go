package packet

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// socketDevice is a device without a kernel behind it: the other end of a socket
// plays it.
func socketDevice(t *testing.T) (d *Device, far int) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(pair[1]) })
	d = &Device{name: "socket", mode: TUN}
	if d.kernel, err = newKernelDevice(pair[0], TUN); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d, pair[1]
}

// TestDeviceUnreadable: what cannot be read is counted and passed over.
func TestDeviceUnreadable(t *testing.T) {
	d, far := socketDevice(t)
	for _, n := range []int{HeaderLen + 1, 0, HeaderLen, 3, HeaderLen + MaxPacket + 1, HeaderLen + MaxPacket} {
		if _, err := unix.Write(far, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	b := NewBatch(0)
	if err := d.ReadBatch(b); err != nil {
		t.Fatal(err)
	}
	if s := d.Stats(); b.Len() != 2 || s.Unreadable != 4 || s.ReadPackets != 2 || s.ReadBytes != MaxPacket+1 {
		t.Errorf("%d packets, %+v", b.Len(), s)
	}
}

// TestDeviceWaits for the first readable packet, and says nothing of a verified checksum.
func TestDeviceWaits(t *testing.T) {
	d, far := socketDevice(t)
	read := make(chan error, 1)
	b := NewBatch(1)
	go func() { read <- d.ReadBatch(b) }()
	for _, p := range [][]byte{{}, make([]byte, HeaderLen), {flagDataValid, HeaderLen: 0x45}} {
		if _, err := unix.Write(far, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	for f := range b.Frames() {
		if f.Data[0] != 0 || len(f.Data) != HeaderLen+1 {
			t.Errorf("% x", f.Data)
		}
	}
	if b.Len() != 1 {
		t.Errorf("%d packets", b.Len())
	}
}

// TestDeviceFull: packets for which there is no memory are tried again for a while, and
// then dropped and counted.
func TestDeviceFull(t *testing.T) {
	d, far := socketDevice(t)
	one := NewBatch(0)
	one.Append(ping(TUN))
	taken := uint64(0)
	for d.Stats().Full == 0 {
		if err := d.WriteBatch(one); err != nil {
			t.Fatal(err)
		}
		taken++
	}
	if s := d.Stats(); s.Full != 1 || s.WritePackets != taken-1 {
		t.Errorf("%+v after %d packets", s, taken)
	}
	// It waits no longer for a batch than for a packet.
	many := NewBatch(0)
	for range 1000 {
		many.Append(ping(TUN))
	}
	if err := d.WriteBatch(many); err != nil {
		t.Fatal(err)
	}
	if s := d.Stats(); s.Full != 1001 {
		t.Errorf("%+v", s)
	}
	b := make([]byte, 100)
	for range taken - 1 {
		if _, err := unix.Read(far, b); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.WriteBatch(one); err != nil || d.Stats().WritePackets != taken {
		t.Errorf("when there is room again: %v, %+v", err, d.Stats())
	}
}

// TestDeviceNothingReadable: a device that hands over rubbish without end is broken.
func TestDeviceNothingReadable(t *testing.T) {
	fd, err := unix.Open("/dev/zero", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	d := &Device{name: "zero"}
	if d.kernel, err = newKernelDevice(fd, TUN); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.ReadBatch(NewBatch(0)); err != errUnreadable {
		t.Error(err)
	}
	// A signal can cut a read short, which then is a packet, and they are counted from
	// the beginning again.
	if s := d.Stats(); s.Unreadable < maxUnreadable || s.ReadPackets == 0 && s.Unreadable != maxUnreadable {
		t.Errorf("%+v", s)
	}
}

// TestDeviceBroken: what is neither a device nor gone is an error of its own.
func TestDeviceBroken(t *testing.T) {
	d, _ := socketDevice(t)
	for what, err := range map[string]error{"SetCarrier": d.SetCarrier(true), "SetOffload": d.SetOffload(OffloadAll)} {
		if !errors.Is(err, unix.ENOTTY) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if o := d.kernel.probeOffload(); o != 0 {
		t.Errorf("takes %v", o)
	}
	if err := d.kernel.setHeader(); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("header: %v", err)
	}
}
