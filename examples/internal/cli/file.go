package cli

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
)

// File is a file that is followed by its content, for what package certs does
// not know, such as a configuration: it is a [Follower]. Set Path and Use
// before the first call and nothing afterwards.
//
//	every Interval: read, compare ─┬─ as it was ──► nothing
//	                               └─ new ─► read again ─┬─ the same ─► Use ─┬─ nil ───► it is in use
//	                                                     │                   └─ error ─► the old stays in use
//	                                                     └─ other ──► once more, and at last the next Interval
//
// Content is used when two looks in a row have seen it, so that a file which is
// being written is not taken half. A writer that pauses for longer gets by that:
// files are replaced by rename.
type File struct {
	// Path is where it is.
	Path string
	// Use takes new content over, or says why it cannot and leaves all as it
	// is. It is called by one goroutine at a time, and again with the same
	// content after an error, for that may lie in a file which the content
	// names.
	Use func(content []byte) error
	// Interval is how often Run reads the file. Zero and negative mean
	// certs.DefaultInterval.
	Interval time.Duration
	// MaxBytes bounds the file. Zero and negative mean certs.MaxFileSize.
	MaxBytes int64
	// Logger gets a line for each new content, good or bad. Nil is silent.
	Logger *slog.Logger

	looking sync.Mutex        // one look at a time
	digest  [sha256.Size]byte // of what is in use

	mu     sync.Mutex
	status FileStatus
}

// FileStatus is how a [File] stands.
type FileStatus struct {
	// Used is since when what is in use is in use; zero if nothing is.
	Used time.Time
	// Err is what is wrong with the newest content, and Since since when that is so;
	// nil and zero if nothing is.
	Err   error
	Since time.Time
}

// Status returns how the file stood at the last look.
func (f *File) Status() FileStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}

// Load reads the file now and uses its content if that is new, which takes a tenth
// of a second. An error is returned and not logged; what was in use stays.
func (f *File) Load() error {
	_, err := f.look(context.Background())
	return err
}

// Ready returns nil when there is something to use, be it the newest content
// or an older one.
func (f *File) Ready() error {
	switch s := f.Status(); {
	case !s.Used.IsZero():
		return nil
	case s.Err != nil:
		return s.Err
	}
	return fmt.Errorf("%s was not read yet", f.Path)
}

// Run reads the file, now and each Interval, until ctx ends, then returns nil.
// What is wrong is logged when it is something new.
func (f *File) Run(ctx context.Context) error {
	log := f.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ticker := time.NewTicker(f.interval())
	defer ticker.Stop()
	said := ""
	for {
		changed, err := f.look(ctx)
		switch {
		case err == errEnded:
			return nil
		case err != nil && err.Error() != said:
			log.Error("file refused, what was in use stays in use", "file", f.Path, "error", capped(err))
		case err == nil && changed:
			log.Info("file loaded", "file", f.Path)
		case err == nil && said != "":
			log.Info("file is good again, unchanged", "file", f.Path)
		}
		if said = ""; err != nil {
			said = err.Error()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (f *File) interval() time.Duration {
	if f.Interval <= 0 {
		return certs.DefaultInterval
	}
	return f.Interval
}

const (
	// settle is the time between two looks at new content.
	settle = 100 * time.Millisecond
	// maxLooks is how often content is looked at that changes all the time.
	maxLooks = 5
)

// errEnded is of a look whose context has ended.
var errEnded = errors.New("the program ends")

// look reads the file and reports whether its content is new and now in use. If
// ctx ends meanwhile, all stays as it is.
func (f *File) look(ctx context.Context) (changed bool, err error) {
	f.looking.Lock()
	defer f.looking.Unlock()
	content, changed, err := f.settled(ctx)
	if changed {
		if err = f.Use(content); err != nil {
			err, changed = fmt.Errorf("%s: %w", f.Path, err), false
		} else {
			f.digest = sha256.Sum256(content)
		}
	}
	if err == errEnded {
		return false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &f.status
	if changed {
		s.Used = time.Now()
	}
	if err == nil {
		s.Err, s.Since = nil, time.Time{}
	} else if s.Err == nil || s.Err.Error() != err.Error() {
		s.Err, s.Since = err, time.Now()
	}
	return changed, err
}

// settled reads the file until two looks in a row have seen the same, and reports
// whether that is another than what is in use.
func (f *File) settled(ctx context.Context) (content []byte, isNew bool, err error) {
	used := !f.Status().Used.IsZero()
	var before [sha256.Size]byte
	for n := range maxLooks {
		if n > 0 {
			select {
			case <-ctx.Done():
				return nil, false, errEnded
			case <-time.After(min(settle, f.interval())):
			}
		}
		if content, err = readFile(f.Path, f.MaxBytes); err != nil {
			return nil, false, err
		}
		digest := sha256.Sum256(content)
		switch {
		case used && digest == f.digest:
			return nil, false, nil
		case n > 0 && digest == before:
			return content, true, nil
		}
		before = digest
	}
	return nil, false, fmt.Errorf("%s changes while it is read: replace it by rename", f.Path)
}

// readFile reads a regular file of at most so many bytes.
func readFile(path string, limit int64) ([]byte, error) {
	if limit <= 0 {
		limit = certs.MaxFileSize
	}
	// A FIFO would block in open, for ever.
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return content, nil
}

// maxLogged bounds the text of an error in the log: one about each line of a large
// file is no help.
const maxLogged = 8 << 10

func capped(err error) string {
	text := err.Error()
	if len(text) <= maxLogged {
		return text
	}
	return text[:maxLogged] + fmt.Sprintf("… and %d bytes more", len(text)-maxLogged)
}
