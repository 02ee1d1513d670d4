package certs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// DefaultInterval is how often files are read again when an Interval
	// field is zero.
	DefaultInterval = 10 * time.Second

	// MaxFileSize bounds every file that this package reads, in bytes. A
	// larger one is an error: nobody has a megabyte of CA certificates, and
	// somebody will mount a log file by mistake.
	MaxFileSize = 1 << 20

	// retryInterval bounds how often a use without any good content reads
	// the files again, so that a flood of handshakes is not a flood of reads.
	retryInterval = time.Second
)

// source says what a follower follows.
type source[T any] struct {
	files    []string
	parse    func(contents [][]byte) (*T, error)
	describe func(*T) []any // attributes for the log line of a new value
	interval time.Duration
	logger   *slog.Logger
}

// follower holds the newest good value of a set of files. It compares
// contents, not times: the files of a Secret mount are symbolic links whose
// target is swapped, and their modification time says nothing.
//
//	          new content parses                 new content is bad
//	none ───────────────────────► good ──┐   ┌─────────────────────► good, err
//	 │                             ▲     └───┘                           │
//	 └─ bad: err, tried again      └──────────── content parses ─────────┘
type follower[T any] struct {
	value atomic.Pointer[T] // newest good value, nil before the first

	mu       sync.Mutex        // held while files are read
	at       time.Time         // when they were read last
	tried    [sha256.Size]byte // content that was tried last, good or bad
	good     [sha256.Size]byte // content of value
	err      error             // what came of tried; nil when it is good
	reported bool              // err has been logged

	watch   sync.Mutex
	changed chan struct{} // closed at the next change; nil when nobody asked
}

// load reads the files once and takes their content if it is new and good.
func (f *follower[T]) load(s source[T], report bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.loadLocked(s, report)
}

func (f *follower[T]) loadLocked(s source[T], report bool) error {
	log := s.logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	wasBad := f.err != nil
	value, digest, err := f.read(s)
	if err == nil || !wasBad || digest != f.tried {
		f.reported = false
	}
	f.at, f.tried, f.err = time.Now(), digest, err
	switch {
	case err != nil:
		if report && !f.reported {
			f.reported = true
			msg := "file refused, nothing to use yet"
			if f.value.Load() != nil {
				msg = "file refused, the old content stays in use"
			}
			log.Error(msg, "files", s.files, "err", err)
		}
		return err
	case value == nil: // the content that is already in use
		if wasBad {
			log.Info("file is good again, unchanged", "files", s.files)
		}
		return nil
	}
	f.good = digest
	f.value.Store(value)
	log.Info("file loaded", append([]any{"files", s.files}, s.describe(value)...)...)
	f.watch.Lock()
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
	f.watch.Unlock()
	return nil
}

// read returns a nil value and no error when the content is in use already.
// Content that does not parse is read a second time at once: most likely the
// first look fell between the two halves of a rotation.
func (f *follower[T]) read(s source[T]) (value *T, digest [sha256.Size]byte, err error) {
	if len(s.files) == 0 {
		return nil, digest, errors.New("no file is named")
	}
	var before [sha256.Size]byte
	for try := 0; ; try++ {
		contents, sum, readErr := readFiles(s.files)
		switch {
		case readErr != nil:
			value, err = nil, readErr
		case f.value.Load() != nil && sum == f.good:
			return nil, sum, nil
		case f.err != nil && sum == f.tried:
			return nil, sum, f.err
		case try > 0 && sum == before:
			return nil, sum, err
		default:
			value, err = s.parse(contents)
		}
		if err == nil || try > 0 {
			return value, sum, err
		}
		before = sum
	}
}

// get returns the value in use; without one it loads first.
func (f *follower[T]) get(s source[T]) (*T, error) {
	if v := f.value.Load(); v != nil {
		return v, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if v := f.value.Load(); v != nil {
		return v, nil
	}
	if f.err != nil && time.Since(f.at) < retryInterval {
		return nil, f.err
	}
	if err := f.loadLocked(s, true); err != nil {
		return nil, err
	}
	return f.value.Load(), nil
}

// refresh loads unless the last look is younger than the interval.
func (f *follower[T]) refresh(s source[T]) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := s.interval
	if d == 0 {
		d = DefaultInterval
	}
	if f.value.Load() != nil && (d < 0 || time.Since(f.at) < d) {
		return f.err
	}
	if f.err != nil && time.Since(f.at) < retryInterval {
		return f.err
	}
	return f.loadLocked(s, true)
}

// run polls until ctx ends.
func (f *follower[T]) run(ctx context.Context, s source[T]) error {
	d := s.interval
	if d == 0 {
		d = DefaultInterval
	}
	if d < 0 {
		f.get(s)
		<-ctx.Done()
		return nil
	}
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		f.load(s, true)
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// next returns a channel that is closed at the next change of the value.
func (f *follower[T]) next() <-chan struct{} {
	f.watch.Lock()
	defer f.watch.Unlock()
	if f.changed == nil {
		f.changed = make(chan struct{})
	}
	return f.changed
}

// readFiles returns the contents and one digest over all of them. A file
// that cannot be read counts as content too, so that its error is new once.
func readFiles(files []string) (contents [][]byte, sum [sha256.Size]byte, err error) {
	h := sha256.New()
	for _, name := range files {
		b, readErr := readFile(name)
		if readErr != nil {
			err = errors.Join(err, readErr)
			fmt.Fprintf(h, "!%d:%s", len(readErr.Error()), readErr)
		}
		fmt.Fprintf(h, "%d:", len(b))
		h.Write(b)
		contents = append(contents, b)
	}
	h.Sum(sum[:0])
	return contents, sum, err
}

func readFile(name string) ([]byte, error) {
	if name == "" {
		return nil, errors.New("the name of a file is empty")
	}
	// A FIFO would block in open, for ever.
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("not a regular file")}
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxFileSize+1))
	if err != nil {
		return nil, err
	}
	if len(b) > MaxFileSize {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("larger than %d bytes", MaxFileSize)}
	}
	return b, nil
}
