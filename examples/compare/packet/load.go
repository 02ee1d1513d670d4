//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/netlab"
)

// output runs a program on a host to its end.
func output(ctx context.Context, h *netlab.Host, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	p, err := h.Start(cmd)
	if err != nil {
		return nil, err
	}
	if err := p.Wait(); err != nil {
		return nil, fmt.Errorf("%s on %s: %w: %s%s", name, h.Name, err, &errs, &out)
	}
	return out.Bytes(), nil
}

// iperf is the throughput of one stream in MB/s, as the receiver counts it.
func (w *world) iperf(ctx context.Context, c contender, d time.Duration, reverse bool) (float64, error) {
	args := []string{"-c", c.target, "-J", "-t", fmt.Sprintf("%.0f", max(d.Seconds(), 1)), "-O", "0"}
	if reverse {
		args = append(args, "-R")
	}
	out, err := output(ctx, w.seed, "iperf3", args...)
	if err != nil {
		return 0, err
	}
	var report struct {
		End struct {
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return 0, err
	}
	if report.End.Received.BitsPerSecond == 0 {
		return 0, errors.New("iperf3 received nothing")
	}
	return report.End.Received.BitsPerSecond / 8e6, nil
}

var pingSummary = regexp.MustCompile(`min/avg/max/mdev = [\d.]+/([\d.]+)/`)

// ping is the average round trip in microseconds. One lost packet is an error.
func (w *world) ping(ctx context.Context, c contender, n int) (float64, error) {
	out, err := output(ctx, w.seed, "ping", "-q", "-i", "0.01", "-c", strconv.Itoa(n), c.target)
	if err != nil {
		return 0, err
	}
	m := pingSummary.FindSubmatch(out)
	if m == nil || !bytes.Contains(out, []byte(" 0% packet loss")) {
		return 0, fmt.Errorf("ping: %s", out)
	}
	average, err := strconv.ParseFloat(string(m[1]), 64)
	return average * 1000, err
}
