package cli

import (
	"context"
	"crypto/sha256"
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
//	                               └─ new ──► Use ─┬─ nil ───► it is in use
//	                                               └─ error ─► the old stays in use
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

	mu     sync.Mutex
	used   bool              // something is in use
	digest [sha256.Size]byte // of what is in use
	err    error             // of the last look
}

// Load reads the file now and uses its content if that is new. An error is
// returned and not logged; what was in use stays.
func (f *File) Load() error {
	_, err := f.look()
	return err
}

// Ready returns nil when there is something to use, be it the newest content
// or an older one.
func (f *File) Ready() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.used:
		return nil
	case f.err != nil:
		return f.err
	}
	return fmt.Errorf("%s was not read yet", f.Path)
}

// Run reads the file, now and each Interval, until ctx ends, then returns nil.
// What is wrong is logged when it is something new.
func (f *File) Run(ctx context.Context) error {
	log, interval := f.Logger, f.Interval
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if interval <= 0 {
		interval = certs.DefaultInterval
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	said := ""
	for {
		changed, err := f.look()
		switch {
		case err != nil && err.Error() != said:
			log.Error("file refused, what was in use stays in use", "file", f.Path, "error", err)
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

// look reads the file and reports whether its content is new and now in use.
func (f *File) look() (changed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	content, err := readFile(f.Path, f.MaxBytes)
	digest := sha256.Sum256(content)
	if err == nil && (!f.used || digest != f.digest) {
		if err = f.Use(content); err != nil {
			err = fmt.Errorf("%s: %w", f.Path, err)
		} else {
			changed, f.used, f.digest = true, true, digest
		}
	}
	f.err = err
	return changed, err
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
