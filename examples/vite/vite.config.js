import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// The backend of examples/fastapi, at the page's own origin.
const backend = process.env.BACKEND_URL ?? "http://127.0.0.1:8001";

export default defineConfig({ plugins: [react()], server: { proxy: { "/api": backend } } });
