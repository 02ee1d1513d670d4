package clitest

import (
	"bytes"
	"encoding/json"
	"time"
)

// Write takes what the program writes.
func (o *Output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, b...)
	o.wake()
	return len(b), nil
}

func (o *Output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.wake()
}

func (o *Output) wake() {
	close(o.more)
	o.more = make(chan struct{})
}

// String is all that was written.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text)
}

// Line is a log line.
type Line map[string]any

// Find waits for a log line that has the message and, in pairs, the attributes.
func (o *Output) Find(msg string, attrs ...string) Line {
	o.t.Helper()
	timeout := time.After(Patience)
	for {
		o.mu.Lock()
		line, ended, more := find(o.text, msg, attrs), o.ended, o.more
		o.mu.Unlock()
		if line != nil {
			return line
		}
		if ended {
			o.t.Fatalf("the program ended without a line %q %q", msg, attrs)
		}
		select {
		case <-more:
		case <-timeout:
			o.t.Fatalf("no line %q %q", msg, attrs)
		}
	}
}

func find(text []byte, msg string, attrs []string) Line {
next:
	for b := range bytes.Lines(text) {
		var line Line
		if json.Unmarshal(b, &line) != nil || line["msg"] != msg {
			continue
		}
		for i := 0; i+1 < len(attrs); i += 2 {
			if line[attrs[i]] != attrs[i+1] {
				continue next
			}
		}
		return line
	}
	return nil
}

// Addr waits until the program listens at a door, and returns the address.
func (o *Output) Addr(door string) string {
	o.t.Helper()
	addr, _ := o.Find("listening", "door", door)["addr"].(string)
	return addr
}
