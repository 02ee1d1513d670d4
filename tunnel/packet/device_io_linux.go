package packet

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// reader is the state of one ReadBatch: kept, so that none of its calls allocates.
type reader struct {
	step  func(fd uintptr) bool // drain, made once
	batch *Batch
	stats *deviceCounters
	err   error
}

func (k *kernelDevice) readBatch(b *Batch, stats *deviceCounters) error {
	r := &k.reader
	r.batch, r.stats, r.err = b, stats, nil
	err := k.raw.Read(r.step)
	r.batch = nil
	if err == nil {
		err = r.err
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && k.gone() {
		return ErrGone
	}
	return err
}

// maxUnreadable bounds how many packets in a row may be unreadable before that is
// taken for a broken device.
const maxUnreadable = 1000

var errUnreadable = errors.New("packet: the device hands over nothing but what cannot be read")

// drain reads packets straight into the batch until there is none, and reports false
// if it is to be called again when there is one.
func (r *reader) drain(fd uintptr) bool {
	b, first := r.batch, r.batch.n
	var bytes uint64
	defer func() {
		r.stats.readPackets.Add(uint64(b.n - first))
		r.stats.readBytes.Add(bytes)
	}()
	for unreadable := 0; ; {
		room := b.room(frameHead + maxPayload)
		if room == nil {
			return true
		}
		n, err := unix.Read(int(fd), room[frameHead:])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return b.n > 0
		case err == unix.EINVAL || err == nil && (n <= HeaderLen || n > HeaderLen+MaxPacket):
			r.stats.unreadable.Add(1)
			if unreadable++; unreadable == maxUnreadable {
				r.err = errUnreadable
				return true
			}
		case err != nil:
			if b.n == 0 { // else it comes again behind what was read
				r.err = err
			}
			return true
		default:
			// That a checksum was verified here is no news to anybody there, and a
			// header of zeros is quick to look at.
			room[frameHead] &^= flagDataValid
			b.commit(typePacket, n)
			bytes += uint64(n - HeaderLen)
			unreadable = 0
		}
	}
}

// writer is the same for WriteBatch.
type writer struct {
	mu    sync.Mutex
	mode  Mode
	step  func(fd uintptr) bool // write, made once
	batch *Batch
	stats *deviceCounters
	err   error
}

func (k *kernelDevice) writeBatch(b *Batch, stats *deviceCounters) error {
	w := &k.writer
	w.mu.Lock()
	defer w.mu.Unlock()
	w.batch, w.stats, w.err = b, stats, nil
	err := k.raw.Write(w.step)
	w.batch = nil
	if err == nil {
		err = w.err
	}
	if err != nil && k.gone() {
		return ErrGone
	}
	return err
}

// write hands the packets over one after the other.
func (w *writer) write(fd uintptr) bool {
	var packets, bytes uint64
	defer func() {
		w.stats.writePackets.Add(packets)
		w.stats.writeBytes.Add(bytes)
	}()
	tries := fullTries
	for f := range w.batch.Frames() {
		err := writePacket(int(fd), f.Data, &tries)
		if err == unix.EINVAL && f.Data[1] != gsoNone {
			// The kernel takes some segmentations only in part: UDP in up to 64
			// pieces before linux 6.10, where newer ones hand over up to 128.
			err = Segment(f, w.mode, OffloadChecksum, func(f Frame) error { return writePacket(int(fd), f.Data, &tries) })
		}
		switch err {
		case nil:
			packets++
			bytes += uint64(len(f.Data) - HeaderLen)
		case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
			w.stats.fullDropped.Add(1)
		case unix.EIO:
			// The interface is down, or about to be deleted.
			w.stats.down.Add(1)
		case unix.EBADFD, unix.EBADF, unix.ENODEV:
			w.err = err
			return true
		default:
			w.stats.refused.Add(1)
		}
	}
	return true
}

// fullTries times fullPause is the longest that one batch waits for the kernel to
// have memory again.
const (
	fullTries = 20
	fullPause = 100 * time.Microsecond
)

// writePacket writes one packet, and again while there is no memory and tries are left.
func writePacket(fd int, data []byte, tries *int) error {
	for {
		_, err := unix.Write(fd, data)
		switch err {
		case unix.EINTR:
			continue
		case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
			if *tries > 0 {
				*tries--
				time.Sleep(fullPause)
				continue
			}
		}
		return err
	}
}
