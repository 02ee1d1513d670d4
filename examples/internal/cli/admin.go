package cli

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/pprof"
	"time"
)

// Check makes a page for a probe: 200 and "ok", or 503 and why not.
func Check(check func(r *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if err := check(r); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte(err.Error() + "\n"))
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	}
}

// Alive is the page for a liveness probe: it is there, so the program is.
func Alive() http.HandlerFunc { return Check(func(*http.Request) error { return nil }) }

// JSON makes a page of a value that is asked for each time.
func JSON(value func() any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		_ = e.Encode(value())
	}
}

// ServeAdmin serves pages, by pattern of http.ServeMux, and the profiles of
// net/http/pprof below /debug/pprof/, until ctx ends. A page has 30 s, so that a
// CPU profile wants ?seconds=20. A request that is not done a second after ctx
// has ended is cut off.
func ServeAdmin(ctx context.Context, l net.Listener, pages map[string]http.HandlerFunc) error {
	mux := http.NewServeMux()
	// By name, because the import registers them only with a mux that is not
	// served here.
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	for pattern, page := range pages {
		mux.HandleFunc(pattern, page)
	}
	s := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		second, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if s.Shutdown(second) != nil {
			_ = s.Close()
		}
	})
	err := s.Serve(l)
	if !stop() {
		<-stopped
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}
